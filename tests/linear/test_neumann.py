"""The truncated series is exactly that."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from torchimplicit.linear import LU, Dense, Neumann


@pytest.mark.parametrize("terms", [1, 2, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("spread", [1.0, 10.0])
def test_is_the_sum_of_so_many_powers(
    terms: int, dtype: torch.dtype, adjoint: bool, spread: float, matrix: Callable, close: Callable
) -> None:
    """Whether the series converges (spread 1) or not (10)."""
    eye = torch.eye(4, dtype=dtype)
    J = spread * (eye - matrix(4, (3,), dtype))
    b = torch.randn(2, 3, 4, dtype=dtype)
    K = J.mH if adjoint else J
    series = sum(torch.linalg.matrix_power(K, k) for k in range(terms))
    state = Neumann(terms).factorize(Dense(eye - J))
    expected = (series @ b.unsqueeze(-1)).squeeze(-1)
    close(state.solve(b, adjoint), expected, tol=1e-12)
    result = state.iterate(b, adjoint, max_steps=1)
    close(result.x, expected, tol=1e-12)
    assert (result.steps == terms).all()
    assert result.products == terms  # terms − 1 for the sum, one for the residual
    residual = torch.linalg.vector_norm(b - ((eye - K) @ expected.unsqueeze(-1)).squeeze(-1), dim=-1)
    torch.testing.assert_close(result.residual_norm, residual)


@pytest.mark.parametrize("preconditioned", [False, True])
def test_adjoint_is_the_adjoint_of_the_truncated_sum(preconditioned: bool, matrix: Callable) -> None:
    """⟨y, S b⟩ = ⟨Sᴴ y, b⟩ for the sum S, not only in the limit."""
    M = LU().factorize(Dense(matrix(4, dtype=torch.complex128))) if preconditioned else None
    state = Neumann(3, preconditioner=M).factorize(Dense(matrix(4, dtype=torch.complex128)))
    b, y = torch.randn(2, 4, dtype=torch.complex128)
    torch.testing.assert_close(torch.vdot(y, state.solve(b)), torch.vdot(state.solve(y, adjoint=True), b))


def test_a_start_adds_the_series_of_its_residual(matrix: Callable) -> None:
    A, b, x0 = matrix(4), torch.randn(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    state = Neumann(3).factorize(Dense(A))
    torch.testing.assert_close(state.iterate(b, x0=x0).x, x0 + state.solve(b - A @ x0))


def test_what_is_claimed_is_checked() -> None:
    A = torch.stack([0.9 * torch.eye(3), 0.01 * torch.eye(3), 5 * torch.eye(3), torch.nan * torch.eye(3)])
    b = torch.ones(5, 4, 3)
    b[1] = 0
    result = Neumann(12).factorize(Dense(A)).iterate(b)
    assert result.converged[0].tolist() == [True, False, False, False]
    assert result.breakdown[0].tolist() == [False, False, False, True]
    assert (result.x[1] == 0).all()
    assert (result.steps[1] == 0).all()
    assert result.converged[1].all()
