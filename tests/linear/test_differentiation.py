"""Solutions differentiate like A⁻¹ b, through factorisations and through the steps of iterative solvers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torchimplicit.linear import CG, GMRES, LU, QR, Auto, BiCGStab, Cholesky, Dense, MatrixFree, Neumann, Richardson

DIRECT = [LU(), QR(), Cholesky(), Auto()]
ITERATIVE = [
    CG(),
    GMRES(),
    BiCGStab(),
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
        if isinstance(solver, (CG, Cholesky)):
            A = (A + A.mH) / 2
        state = solver.factorize(Dense(A))
        if not hasattr(state, "iterate"):
            return state.solve(b, adjoint)
        return state.iterate(b, adjoint, rtol=1e-13, max_steps=60).x

    return f


def spread(n: int, dtype: torch.dtype) -> Tensor:
    """A definite and non-symmetric matrix with well-separated eigenvalues, for which every method takes all n steps."""
    return torch.diag(torch.arange(1, n + 1).to(dtype)) + 0.3 * torch.randn(n, n, dtype=dtype)


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
    if isinstance(solver, CG):  # it follows the matrix within the symmetric ones alone
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
