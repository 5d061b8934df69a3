"""Linear systems with no solution, or many: an error, or by choice the nearest and shortest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import torchimplicit as ti
from torchimplicit.linear import SVD, Dense, Kronecker, LinearOperator, MatrixFree, Sparse, tridiagonal

SHAPES = [(6, 3), (3, 6), (4, 4)]
n = 8


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pseudo(A: Tensor, b: Tensor) -> Tensor:
    return (torch.linalg.pinv(A) @ b.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
class TestShortest:
    def test_is_the_pseudo_inverse_with_its_derivatives(self, shape: tuple[int, int], dtype: torch.dtype) -> None:
        A = torch.randn(2, *shape, dtype=dtype, requires_grad=True)
        b = torch.randn(2, shape[0], dtype=dtype, requires_grad=True)

        def f(A: Tensor, b: Tensor) -> Tensor:
            return ti.linear_solve(A, b, shortest=True, rtol=1e-13).value

        torch.testing.assert_close(f(A, b), pseudo(A, b), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(torch.vmap(f)(A, b), pseudo(A, b), rtol=1e-9, atol=1e-9)
        assert gradcheck(f, (A, b), check_forward_ad=True, fast_mode=True)
        assert gradgradcheck(f, (A, b), fast_mode=True)

    def test_of_a_sparse_matrix_and_of_a_kronecker_product(self, shape: tuple[int, int], dtype: torch.dtype) -> None:
        A, b = torch.randn(*shape, dtype=dtype), torch.randn(shape[0], dtype=dtype)
        z = ti.linear_solve(A.to_sparse_coo(), b, shortest=True, rtol=1e-12).value
        torch.testing.assert_close(z, pseudo(A, b), rtol=1e-8, atol=1e-8)
        B, c = torch.randn(2, 2, dtype=dtype), torch.randn(2 * shape[0], dtype=dtype)
        z = ti.linear_solve(Kronecker(Dense(A), Dense(B)), c, shortest=True, rtol=1e-12).value
        torch.testing.assert_close(z, pseudo(torch.kron(A, B), c), rtol=1e-7, atol=1e-7)


def test_a_rectangular_matrix_is_an_error_unless_chosen() -> None:
    with pytest.raises(
        ValueError, match=r"6 equations for 3 unknowns. For the least squares solution pass shortest=True"
    ):
        ti.linear_solve(torch.randn(6, 3), torch.randn(6))
    with pytest.raises(ValueError, match=r"3 equations for 6 unknowns. For the shortest solution pass shortest=True"):
        ti.linear_solve(torch.randn(3, 6).to_sparse_coo(), torch.randn(3))


def test_less_than_full_rank_is_a_failure_unless_svd_is_asked_for() -> None:
    A, b = torch.randn(5, 2).double() @ torch.randn(2, 4).double(), torch.randn(5).double()
    with pytest.raises(ti.ConvergenceError, match="singular"):
        ti.linear_solve(A, b, shortest=True, on_failure="raise")
    solution = ti.linear_solve(A, b, shortest=True, solver=SVD())
    assert solution.info.converged
    torch.testing.assert_close(solution.value, pseudo(A, b), rtol=1e-9, atol=1e-9)


def test_a_square_system_without_a_solution_fails_by_every_solver() -> None:
    A = torch.diag(torch.tensor([1.0, 2.0, 0.0]).double())
    b = torch.ones(3).double()
    for solver in (None, SVD(), ti.linear.GMRES(), ti.linear.MINRES()):
        assert not ti.linear_solve(Dense(A, symmetric=True), b, solver=solver, on_failure="ignore").info.converged


def laplacian(w: Tensor) -> Tensor:
    """Of a path with conductances w: symmetric, and its null space are the constants."""
    ends = torch.nn.functional.pad(w, (1, 1))
    return torch.diag_embed(ends[..., 1:] + ends[..., :-1]) - torch.diag_embed(w, 1) - torch.diag_embed(w, -1)


FORMS: dict[str, Callable[[Tensor], LinearOperator]] = {
    "dense": lambda L: Dense(L, symmetric=True),
    "sparse": lambda L: Sparse(L.to_sparse_coo(), symmetric=True),
    "tridiagonal": lambda L: tridiagonal(L.diagonal(-1), L.diagonal(), L.diagonal(1), symmetric=True),
    "products": lambda L: MatrixFree(lambda x: L @ x, n=n, dtype=L.dtype, symmetric=True),
}


@pytest.mark.parametrize("form", FORMS)
class TestNullSpace:
    def test_the_solution_is_the_shortest_and_nearest_one(self, form: str) -> None:
        w, b = torch.rand(n - 1).double() + 0.5, torch.randn(3, n).double()
        ones = torch.ones(n).double()

        def f(w: Tensor, b: Tensor) -> Tensor:
            return ti.linear_solve(FORMS[form](laplacian(w)), b, null_space=ones, rtol=1e-12).value

        torch.testing.assert_close(f(w, b), pseudo(laplacian(w), b), rtol=1e-8, atol=1e-8)
        assert gradcheck(f, (w.requires_grad_(), b.requires_grad_()), fast_mode=True)

    def test_one_that_is_not_declared_is_a_failure(self, form: str) -> None:
        b = torch.randn(n).double()
        for rhs in (b, b - b.mean()):  # the second has solutions: none of them is the one
            info = ti.linear_solve(FORMS[form](laplacian(torch.ones(n - 1).double())), rhs, on_failure="ignore").info
            assert info.status_names == "singular"


def test_both_null_spaces_of_a_matrix_that_is_not_symmetric() -> None:
    scale = torch.rand(n).double() + 0.5
    A = (torch.roll(torch.eye(n).double(), 1, 0) - torch.eye(n).double()) * scale
    b = torch.randn(n).double()
    z = ti.linear_solve(A, b, null_space=(1 / scale, torch.ones(n).double()), rtol=1e-12).value
    torch.testing.assert_close(z, pseudo(A, b), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match=r"give that of its adjoint too"):
        ti.linear_solve(A, b, null_space=1 / scale)
    with pytest.raises(ValueError, match=r"expected \(n,\) or \(\.\.\., n, k\) with n = 8"):
        ti.linear_solve(Dense(A, symmetric=True), b, null_space=torch.ones(3).double())


def test_what_is_no_null_space_is_refused() -> None:
    A, ones = laplacian(torch.ones(n - 1).double()), torch.ones(n).double()
    b = torch.randn(n).double()
    regular = Dense(2 * torch.eye(n).double(), symmetric=True)
    for operator, V in ((Dense(A, symmetric=True), torch.eye(n).double()[0]), (regular, ones)):
        with pytest.raises(ValueError, match="null_space= is not that of A: A V has numbers"):
            ti.linear_solve(operator, b, null_space=V)
    scale = torch.linspace(1, 2, n).double()
    with pytest.raises(ValueError, match="Aᴴ W has numbers"):
        ti.linear_solve(A * scale, b, null_space=(1 / scale, 1 / scale))
    with pytest.raises(TypeError, match="pair of tensors"):
        ti.linear_solve(Dense(A, symmetric=True), b, null_space=[1.0] * n)  # type: ignore[arg-type]


def test_products_of_tensors_are_refused() -> None:
    with pytest.raises(TypeError, match=r"made of operators; of a tensor of entries A take linear\.Dense"):
        Kronecker(torch.eye(2), torch.eye(2))  # type: ignore[arg-type]
