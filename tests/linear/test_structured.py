"""Every kind of operator is its matrix, and its direct solve is that of dense linear algebra."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torchimplicit.linear import Auto, LinearOperator, tridiagonal

from .structured import CASES, N

DTYPES = [torch.float64, torch.complex128]


def product(A: Tensor, x: Tensor) -> Tensor:
    return (A @ x.unsqueeze(-1)).squeeze(-1)


def made(kind: str, *batch: int, dtype: torch.dtype = torch.float64) -> tuple[LinearOperator, Tensor]:
    case = CASES[kind]
    tensors = case.tensors(*batch, dtype=dtype)
    return case.operator(*tensors), case.dense(*tensors)


@pytest.mark.parametrize("kind", CASES)
@settings(max_examples=4, deadline=None)
@given(
    seed=st.integers(0, 1000),
    dtype=st.sampled_from(DTYPES),
    batch=st.lists(st.integers(1, 3), max_size=2),
    lead=st.lists(st.integers(1, 3), max_size=2),
)
def test_products_views_and_solves(kind: str, seed: int, dtype: torch.dtype, batch: list[int], lead: list[int]) -> None:
    torch.manual_seed(seed)
    operator, A = made(kind, *batch, dtype=dtype)
    x = torch.randn(*lead, *batch, N, dtype=dtype)
    assert operator.shape == A.shape
    torch.testing.assert_close(operator.apply(x), product(A, x))
    torch.testing.assert_close(operator.apply(x, adjoint=True), product(A.mH, x))
    torch.testing.assert_close(operator.to_dense(), A)
    torch.testing.assert_close(operator.H.to_dense(), A.mH.resolve_conj())
    torch.testing.assert_close(operator.T.apply(x), product(A.mT, x))
    state = Auto().factorize(operator)
    for adjoint, matrix in ((False, A), (True, A.mH)):
        solution = state.solve(x, adjoint)
        torch.testing.assert_close(product(matrix, solution), x, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(product(A.mT, Auto().factorize(operator.T).solve(x)), x, atol=1e-9, rtol=1e-9)
    assert not Auto().factorize(operator).direct.singular.any()


@pytest.mark.parametrize("kind", CASES)
def test_what_the_structure_promises_is_true_of_the_matrix(kind: str) -> None:
    operator, A = made(kind)
    facts = operator.structure
    i, j = torch.meshgrid(torch.arange(N), torch.arange(N), indexing="ij")
    outside = (i - j > facts.lower) | (j - i > facts.upper)
    assert (A[outside].abs() < 1e-12).all()
    assert not facts.symmetric or torch.allclose(A, A.mH)


@pytest.mark.parametrize("kind", CASES)
def test_an_operator_is_a_pytree_of_its_tensors(kind: str) -> None:
    from torchimplicit.private import pytree

    operator, A = made(kind)
    leaves, tree = pytree.tree_flatten(operator)
    again = pytree.tree_unflatten([2 * leaf for leaf in leaves], tree)
    assert isinstance(again, type(operator))
    torch.testing.assert_close(pytree.tree_unflatten(leaves, tree).to_dense(), A)


def test_tridiagonal_matrices_that_are_definite_or_are_only_said_to_be() -> None:
    torch.manual_seed(0)
    e, d = torch.rand(3, 49, dtype=torch.float64) - 0.5, torch.rand(3, 50, dtype=torch.float64) + 1.5
    b = torch.randn(2, 3, 50, dtype=torch.float64)
    indefinite = torch.tensor([0.0, 2.2, 0.0], dtype=torch.float64).unsqueeze(-1)
    for diagonal in (d, d - indefinite):
        A = tridiagonal(e, diagonal, e, symmetric=True, positive_definite=True)
        x = torch.linalg.solve(A.to_dense(), b.unsqueeze(-1)).squeeze(-1)
        for adjoint in (False, True):
            torch.testing.assert_close(A.direct().solve(b, adjoint), x, rtol=1e-9, atol=1e-11)
