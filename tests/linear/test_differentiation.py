"""Solutions differentiate like A⁻¹ b, through factorisations and through the steps of iterative solvers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.linear import every_linear_solver
from tests.linear.every_linear_solver import DEFINITE, every
from torchimplicit.linear import CG, GMRES, LU, Auto, BiCGStab, Cholesky, Dense, MatrixFree, Neumann, Richardson
from torchimplicit.linear.iteration import euclidean_norm

DIRECT = list(every(every_linear_solver.DIRECT).values())
ITERATIVE = [
    *every(every_linear_solver.ITERATIVE).values(),
    Richardson(preconditioner=LU()),
    Auto(dense_limit=0),
    CG(preconditioner=LU()),
    GMRES(preconditioner=LU()),
    BiCGStab(preconditioner=LU()),
]
GRADCHECK = {"atol": 1e-5, "rtol": 1e-4}


def solution(solver: Any, adjoint: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """(A, b) -> x, for the Hermitian part of A where the solver wants it."""

    def f(A: Tensor, b: Tensor) -> Tensor:
        if type(solver).__name__ in DEFINITE:
            A = (A + A.mH) / 2
        state = solver.factorize(Dense(A))
        if not hasattr(state, "iterate"):
            return state.solve(b, adjoint)
        return state.iterate(b, adjoint, rtol=1e-13, max_steps=60).x

    return f


def spread(n: int, dtype: torch.dtype) -> Tensor:
    """A definite and non-symmetric matrix with well-separated eigenvalues, for which every method takes all n steps."""
    return torch.diag(torch.arange(1, n + 1).to(dtype)) + 0.3 * torch.randn(n, n, dtype=dtype)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("solver", DIRECT + ITERATIVE, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("adjoint", [False, True])
def test_first_derivatives(solver: Any, dtype: torch.dtype, adjoint: bool) -> None:
    A, b = spread(3, dtype).requires_grad_(), torch.randn(3, dtype=dtype, requires_grad=True)
    assert torch.autograd.gradcheck(solution(solver, adjoint), (A, b), **GRADCHECK)


@pytest.mark.parametrize("solver", [LU(), Cholesky(), CG(), GMRES(), BiCGStab(), Neumann(4)], ids=repr)
def test_second_derivatives(solver: Any) -> None:
    A, b = spread(3, torch.float64).requires_grad_(), torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(solution(solver, False), (A, b), **GRADCHECK)


@pytest.mark.parametrize("solver", ITERATIVE, ids=repr)
def test_gradients_reach_a_captured_matrix(solver: Any, close: Callable) -> None:
    n = 4
    A = spread(n, torch.float64)
    A = ((A + A.mT) / 2).requires_grad_()
    b, v = torch.randn(2, n, dtype=torch.float64)
    operator = MatrixFree(lambda x: A @ x, n=n, dtype=A.dtype)
    x = solver.factorize(operator).iterate(b, rtol=1e-13, max_steps=60).x
    (grad,) = torch.autograd.grad((x * v).sum(), A)
    u = torch.linalg.solve(A.mT, v)
    if type(solver).__name__ in DEFINITE:  # it follows the matrix within the symmetric ones alone
        grad, truth = (grad + grad.mT) / 2, -(torch.outer(u, x) + torch.outer(x, u)) / 2
    else:
        truth = -torch.outer(u, x)
    torch.testing.assert_close(grad, truth, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("solver", [CG(), GMRES(), GMRES(restart=2), BiCGStab(), Auto(dense_limit=0)], ids=repr)
def test_finished_and_failed_systems_leave_finite_gradients_to_the_others(solver: Any) -> None:
    """One done in a step (masked after it), b = 0, a singular one, a NaN one; then a good one."""
    n = 4
    eye = torch.eye(n, dtype=torch.float64)
    A = torch.stack([3 * eye, eye, 0 * eye, torch.nan * eye, torch.diag(torch.arange(1.0, n + 1)).double()])
    b = torch.randn(5, n, dtype=torch.float64)
    b[1] = 0
    A.requires_grad_()
    b.requires_grad_()
    x = solver.factorize(Dense(A)).iterate(b, rtol=1e-12).x
    dA, db = torch.autograd.grad(x[[0, 1, 2, 4]].sum(), (A, b))
    good = [0, 1, 4]
    assert dA[good].isfinite().all()
    assert db[good].isfinite().all()
    truth = torch.linalg.solve(A[[0, 4]], torch.ones(2, n, dtype=torch.float64))
    torch.testing.assert_close(db[[0, 4]], truth, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("solver", DIRECT, ids=repr)
def test_gradients_reach_a_captured_matrix_that_is_made_dense(solver: Any) -> None:
    A, b = spread(4, torch.float64), torch.randn(4, dtype=torch.float64)
    A = (A @ A.mT).requires_grad_() if isinstance(solver, Cholesky) else A.requires_grad_()
    x = solver.factorize(MatrixFree(lambda x: A @ x, n=4, dtype=A.dtype)).solve(b)
    (grad,) = torch.autograd.grad(x.sum(), A)
    truth = -torch.outer(torch.linalg.solve(A.detach().mT, torch.ones(4).double()), x.detach())
    if isinstance(solver, Cholesky):
        grad, truth = (grad + grad.mT) / 2, (truth + truth.mT) / 2
    torch.testing.assert_close(grad, truth)


def test_the_norm_has_derivatives_at_zero_and_at_any_scale() -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    x[1] = 0
    x.requires_grad_()
    (first,) = torch.autograd.grad(euclidean_norm(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum(), x)
    assert (first[1] == 0).all()
    torch.testing.assert_close(second, torch.zeros_like(x))  # the gradient has norm one wherever x is not zero
    for scale in (1e-40, 1e-30, 1e30):
        y = torch.tensor([3.0, 4.0]) * scale
        torch.testing.assert_close(euclidean_norm(y), torch.tensor(5.0 * scale), rtol=1e-4, atol=0)
