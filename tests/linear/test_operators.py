"""An operator is its matrix: products, adjoints, transposes and dense forms agree with the entries."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torchimplicit.linear import Dense, Diagonal, LinearOperator, MatrixFree, Sparse

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def operators(dtype: torch.dtype) -> dict[str, tuple[LinearOperator, Tensor]]:
    """Every kind of operator with its matrix."""
    A = torch.randn(3, 2, 4, 5, dtype=dtype)
    S = torch.randn(3, 2, 4, 4, dtype=dtype)
    d = torch.randn(3, 4, dtype=dtype)
    P = torch.randn(4, 5, dtype=dtype) * (torch.rand(4, 5) < 0.5)

    def Sx(x: Tensor) -> Tensor:
        return (S @ x.unsqueeze(-1)).squeeze(-1)

    def Shx(x: Tensor) -> Tensor:
        return (S.mH @ x.unsqueeze(-1)).squeeze(-1)

    free = {"n": 4, "batch_shape": (3, 2), "dtype": dtype}
    return {
        "dense": (Dense(A), A),
        "diagonal": (Diagonal(d), torch.diag_embed(d)),
        "coo": (Sparse(P.to_sparse_coo()), P),
        "csr": (Sparse(P.to_sparse_csr()), P),
        "matrix-free": (MatrixFree(Sx, Shx, **free), S),
        "matrix-free, adjoint derived": (MatrixFree(Sx, **free), S),
    }


KINDS = ["dense", "diagonal", "coo", "csr", "matrix-free", "matrix-free, adjoint derived"]
pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
class TestEveryOperator:
    def test_products_are_those_of_the_matrix(self, kind: str, dtype: torch.dtype) -> None:
        operator, A = operators(dtype)[kind]
        *batch, m, n = A.shape
        assert (operator.shape, operator.batch_shape, operator.dtype) == (A.shape, A.shape[:-2], dtype)
        for lead in ((), (2,), (2, 3)):
            x, y = torch.randn(*lead, *batch, n, dtype=dtype), torch.randn(*lead, *batch, m, dtype=dtype)
            torch.testing.assert_close(operator.apply(x), (A @ x.unsqueeze(-1)).squeeze(-1))
            torch.testing.assert_close(operator.apply(y, adjoint=True), (A.mH @ y.unsqueeze(-1)).squeeze(-1))

    def test_dense_forms_and_views(self, kind: str, dtype: torch.dtype) -> None:
        operator, A = operators(dtype)[kind]
        torch.testing.assert_close(operator.to_dense(), A)
        torch.testing.assert_close(operator.H.to_dense(), A.mH.resolve_conj())
        torch.testing.assert_close(operator.T.to_dense(), A.mT)
        torch.testing.assert_close(operator.H.T.to_dense(), A.conj().resolve_conj())
        x = torch.randn(*A.shape[:-2], A.shape[-2], dtype=dtype)
        torch.testing.assert_close(operator.H.matvec(x), (A.mH @ x.unsqueeze(-1)).squeeze(-1))
        torch.testing.assert_close(operator.T.matvec(x), (A.mT @ x.unsqueeze(-1)).squeeze(-1))
        y = torch.randn(*A.shape[:-2], A.shape[-1], dtype=dtype)
        torch.testing.assert_close(operator.T.rmatvec(y), (A.conj() @ y.unsqueeze(-1)).squeeze(-1))

    def test_adjoint_of_adjoint_is_the_operator(self, kind: str, dtype: torch.dtype) -> None:
        operator, _ = operators(dtype)[kind]
        assert operator.H.H is operator
        assert operator.T.T is operator


@settings(max_examples=30, deadline=None)
@given(
    batch=st.lists(st.integers(0, 3), max_size=2),
    lead=st.lists(st.integers(0, 3), max_size=2),
    m=st.integers(0, 4),
    n=st.integers(0, 4),
)
def test_inner_product_identity_for_all_shapes(batch: list[int], lead: list[int], m: int, n: int) -> None:
    """⟨y, A x⟩ = ⟨Aᴴ y, x⟩."""
    A = Dense(torch.randn(*batch, m, n, dtype=torch.complex128))
    x, y = (torch.randn(*lead, *batch, k, dtype=torch.complex128) for k in (n, m))
    left = (y.conj() * A.apply(x)).sum(-1)
    right = (A.apply(y, adjoint=True).conj() * x).sum(-1)
    torch.testing.assert_close(left, right)


def test_structure_is_declared_not_guessed() -> None:
    A = torch.eye(2)
    assert not Dense(A).symmetric
    assert Dense(A, positive_definite=True).symmetric
    assert Diagonal(torch.ones(2)).symmetric
    assert not Diagonal(torch.ones(2, dtype=torch.complex64)).symmetric
    symmetric = Dense(A, symmetric=True)
    assert symmetric.H is symmetric
    assert "symmetric" in repr(symmetric)


def test_symmetric_matrix_free_uses_its_product_for_both() -> None:
    operator = MatrixFree(lambda x: x.detach() * 2, n=3, symmetric=True)
    torch.testing.assert_close(operator.rmatvec(torch.ones(3)), torch.full((3,), 2.0))


def test_derived_adjoint_evaluates_the_product_once() -> None:
    calls = []
    A = torch.randn(3, 3)
    operator = MatrixFree(lambda x: calls.append(1) or A @ x, n=3)
    for _ in range(5):
        y = torch.randn(3)
        torch.testing.assert_close(operator.rmatvec(y), A.mT @ y)
    assert len(calls) == 1


def test_derived_adjoint_differentiates_in_the_matrix_and_the_vector() -> None:
    def f(A: Tensor, y: Tensor) -> Tensor:
        return MatrixFree(lambda x: A @ x, n=3, dtype=A.dtype).rmatvec(y)

    A = torch.randn(3, 3, dtype=torch.complex128, requires_grad=True)
    y = torch.randn(3, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(f, (A, y))
    assert torch.autograd.gradgradcheck(f, (A, y))
    batch = torch.randn(4, 3, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(torch.vmap(f)(*batch), torch.stack([f(*each) for each in zip(*batch)]))


def test_a_product_that_vmap_refuses_takes_vectors_one_by_one() -> None:
    A = torch.randn(3, 3)

    def matvec(x: Tensor) -> Tensor:
        assert x.ndim == 1
        x.sum().item()  # vmap refuses this
        return A @ x

    operator = MatrixFree(matvec, n=3)
    torch.testing.assert_close(operator.to_dense(), A)
    torch.testing.assert_close(operator.H.to_dense(), A.mT)


def test_leading_dimensions_reach_a_product_that_declares_them() -> None:
    seen = []
    A = torch.randn(3, 3)
    operator = MatrixFree(lambda x: seen.append(x.shape) or x @ A.mT, n=3, leading=True)
    torch.testing.assert_close(operator.to_dense(), A)
    assert seen == [(3, 3)]


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_stored_entries_of_a_sparse_matrix_get_their_gradient(layout: str) -> None:
    dense = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]], dtype=torch.float64)
    sparse = (dense.to_sparse_coo() if layout == "coo" else dense.to_sparse_csr()).requires_grad_()
    x, y = torch.randn(3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    (Sparse(sparse).matvec(x) * y).sum().backward()
    expected = torch.outer(y, x) * (dense != 0)
    assert sparse.grad is not None
    torch.testing.assert_close(sparse.grad.to_dense(), expected)


class TestErrors:
    @pytest.mark.parametrize("wrong", [torch.ones(3), torch.ones(2, 2, dtype=torch.int64)])
    def test_dense_wants_a_floating_matrix(self, wrong: Tensor) -> None:
        with pytest.raises(ValueError, match=r"Dense got a tensor of shape .* expected \(\.\.\., m, n\)"):
            Dense(wrong)

    def test_diagonal_wants_a_floating_vector(self) -> None:
        with pytest.raises(ValueError, match=r"Diagonal got .* expected \(\.\.\., n\)"):
            Diagonal(torch.tensor(1.0))

    def test_sparse_wants_two_dimensions_and_a_known_layout(self) -> None:
        with pytest.raises(ValueError, match=r"3-D tensor of layout torch.sparse_coo"):
            Sparse(torch.ones(2, 2, 2).to_sparse_coo())
        with pytest.raises(ValueError, match=r"layout torch.sparse_csc"):
            Sparse(torch.eye(2).to_sparse_csc())
        with pytest.raises(ValueError, match=r"int64"):
            Sparse(torch.ones(2, 2, dtype=torch.int64).to_sparse_coo())

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (lambda x: x[..., :2], r"returned a tensor of shape \(2,\)"),
            (lambda x: x.double(), r"torch.float64"),
            (lambda x: None, r"returned NoneType"),
        ],
    )
    def test_matvec_must_return_a_vector_like_its_argument(self, wrong: Callable, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            MatrixFree(wrong, n=3).matvec(torch.ones(3))

    def test_adjoint_of_a_product_outside_autograd(self) -> None:
        with pytest.raises(ValueError, match=r"not differentiable.*pass rmatvec"):
            MatrixFree(lambda x: x.detach() * 2, n=3).rmatvec(torch.ones(3))
