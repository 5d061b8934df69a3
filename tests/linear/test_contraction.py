"""`Contraction`: plain steps where they contract, something better where they do not; always the right x."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torchimplicit.linear import Contraction, Dense, MatrixFree


def spread(n: int, radius: float, seed: int = 0) -> Tensor:
    """An asymmetric matrix of that spectral norm, far from normal."""
    M = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return radius * M / torch.linalg.matrix_norm(M, 2)


def rotation(n: int, radius: float) -> Tensor:
    """A multiple of an orthogonal matrix: all of its spectrum lies on a circle, where GMRES gains nothing."""
    M = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return radius * torch.linalg.qr(M)[0]


CASES = {
    "fast": spread(100, 0.5),
    "slow": rotation(100, 0.97),
    "accelerated": spread(100, 0.999),
    "expanding": spread(100, 5.0),
    "small and expanding": spread(7, 9.0),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("adjoint", [False, True])
def test_the_solution_is_that_of_the_dense_solve(case: str, adjoint: bool) -> None:
    M = CASES[case]
    n = len(M)
    A = torch.eye(n, dtype=torch.float64) - M
    b = torch.randn(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    free = MatrixFree(lambda x: x - (M @ x.unsqueeze(-1)).squeeze(-1), n=n, batch_shape=(3,), dtype=torch.float64)
    result = Contraction().factorize(free).iterate(b, adjoint, rtol=1e-10)
    expected = torch.linalg.solve(A.mT if adjoint else A, b.unsqueeze(-1)).squeeze(-1)
    assert result.converged.all()
    assert torch.allclose(result.x, expected, rtol=1e-7, atol=1e-8)


def test_fast_contractions_need_neither_krylov_space_nor_factors() -> None:
    A = torch.eye(100, dtype=torch.float64) - CASES["fast"]
    state = Contraction().factorize(Dense(A))
    assert state.iterate(torch.ones(100, dtype=torch.float64)).converged
    assert state.fallback is None


def test_slow_contractions_that_gmres_does_not_speed_up_are_factorised_where_that_is_cheaper() -> None:
    A = torch.eye(100, dtype=torch.float64) - CASES["slow"]
    state = Contraction().factorize(Dense(A))
    b = torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    result = state.iterate(b, rtol=1e-10)
    assert result.converged
    assert state.direct is not None
    assert result.steps < 100


def test_a_nan_system_disturbs_no_other_and_zero_is_solved_by_zero() -> None:
    A = torch.eye(4, dtype=torch.float64) - spread(4, 0.3)
    A = torch.stack([A, A, torch.full_like(A, torch.nan)])
    b = torch.ones(3, 4, dtype=torch.float64)
    b[1] = 0
    result = Contraction().factorize(Dense(A)).iterate(b)
    assert torch.allclose(A[0] @ result.x[0], b[0])
    assert (result.x[1] == 0).all()
    assert result.converged.tolist() == [True, True, False]
    assert result.steps[1] == 0
