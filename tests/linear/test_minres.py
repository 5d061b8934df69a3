"""MINRES takes the smallest residual in each Krylov space, for symmetric matrices that need not be definite."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torchimplicit.linear import LU, MINRES, SVD, Dense

DTYPES = [torch.float64, torch.complex128]


def hermitian(n: int, eigenvalues: Tensor, dtype: torch.dtype, *batch: int) -> Tensor:
    Q, _ = torch.linalg.qr(torch.randn(*batch, n, n, dtype=dtype))
    return (Q * eigenvalues) @ Q.mH


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_step_has_the_smallest_residual_of_its_krylov_space(dtype: torch.dtype) -> None:
    n = 12
    A, b = hermitian(n, torch.linspace(-2, 3, n, dtype=torch.float64), dtype), torch.randn(n, dtype=dtype)
    for k in range(1, 8):
        x = MINRES().factorize(Dense(A, symmetric=True)).iterate(b, rtol=0.0, max_steps=k).x
        powers = [b]
        for _ in range(k - 1):
            powers.append(A @ powers[-1] / torch.linalg.vector_norm(A @ powers[-1]))
        Q, _ = torch.linalg.qr(torch.stack(powers, -1))
        best = torch.linalg.lstsq(A @ Q, b.unsqueeze(-1)).solution
        smallest = torch.linalg.vector_norm(A @ Q @ best - b.unsqueeze(-1))
        torch.testing.assert_close(torch.linalg.vector_norm(A @ x - b), smallest, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("preconditioned", [False, True])
def test_indefinite_systems_of_a_batch(dtype: torch.dtype, preconditioned: bool, reference: Callable) -> None:
    n = 20
    A = hermitian(n, torch.cat([torch.linspace(-3, -1, 7), torch.linspace(0.5, 4, n - 7)]).double(), dtype, 3)
    near = hermitian(n, torch.linspace(1, 2, n).double(), dtype, 3)
    preconditioner = LU().factorize(Dense(near)) if preconditioned else None
    b = torch.randn(2, 3, n, dtype=dtype)
    b[0, 1] = 0
    for adjoint in (False, True):
        result = (
            MINRES(preconditioner=preconditioner).factorize(Dense(A)).iterate(b, adjoint, rtol=1e-10, max_steps=200)
        )
        assert result.converged.all()
        assert result.steps[0, 1] == 0
        torch.testing.assert_close(result.x, reference(A, b, adjoint), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("solver", [MINRES(), SVD()], ids=repr)
def test_of_a_singular_system_with_solutions_the_shortest_one_is_found(solver: MINRES | SVD) -> None:
    n = 10
    A = hermitian(n, torch.tensor([0, 0, -1, -2, -3, 1, 2, 3, 4, 5], dtype=torch.float64), torch.float64)
    b = A @ torch.randn(n, dtype=torch.float64)
    x = solver.factorize(Dense(A, symmetric=True)).solve(b)
    torch.testing.assert_close(x, torch.linalg.pinv(A) @ b, rtol=1e-7, atol=1e-8)


def test_an_indefinite_preconditioner_breaks_down() -> None:
    A = torch.diag(torch.arange(1.0, 6.0))
    wrong = LU().factorize(Dense(-torch.eye(5)))
    result = MINRES(preconditioner=wrong).factorize(Dense(A)).iterate(torch.ones(5))
    assert result.breakdown
    assert not result.converged
