"""`Contraction`: plain steps where they contract, something better where they do not; always the right x."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torchimplicit.linear import GMRES, Contraction, Dense, LinearResult, MatrixFree


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


def slow_products(n: int = 300) -> tuple[LinearResult, LinearResult, int]:
    """A slow contraction with a real spectrum: by this solver, by GMRES that never restarts, and how many plain steps it takes."""
    M = spread(n, 1.0)
    M = 0.99 * (M + M.mT) / torch.linalg.matrix_norm(M + M.mT, 2)
    d = 0.8 + 0.2 * torch.rand(4, n, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    b = torch.randn(4, n, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    A = MatrixFree(lambda x: x - d * (x @ M), n=n, batch_shape=(4,), dtype=torch.float64)
    x, plain = b, 0
    while not (torch.linalg.vector_norm(b - A.matvec(x), dim=-1) <= 1e-6 * torch.linalg.vector_norm(b, dim=-1)).all():
        x, plain = x + b - A.matvec(x), plain + 1
    krylov = GMRES(restart=100).factorize(A).iterate(b, rtol=1e-6)
    return Contraction().factorize(A).iterate(b, rtol=1e-6), krylov, plain


def test_slow_contractions_take_a_third_of_the_plain_steps_and_hardly_more_products_than_gmres() -> None:
    result, krylov, plain = slow_products()
    assert result.converged.all()
    assert krylov.converged.all()
    assert result.products <= plain / 3
    assert result.products <= 1.15 * krylov.products
    assert torch.allclose(result.x, krylov.x, rtol=1e-4, atol=1e-4)


def test_complex_systems_are_mixed_with_the_right_conjugations() -> None:
    n = 300
    M = torch.complex(spread(n, 0.7), spread(n, 0.7, seed=9))
    M = 0.97 * (M + M.mH) / torch.linalg.matrix_norm(M + M.mH, 2)
    b = torch.randn(2, n, dtype=M.dtype, generator=torch.Generator().manual_seed(6))
    A = MatrixFree(lambda x: x - x @ M.mT, lambda x: x - x @ M.conj(), n=n, batch_shape=(2,), dtype=M.dtype)
    state = Contraction().factorize(A)
    result = state.iterate(b, rtol=1e-6)
    assert result.converged.all()
    assert state.fallback is None
    assert result.products < 70  # plain steps: more than 200
    dense = torch.eye(n, dtype=M.dtype) - M
    assert torch.allclose(result.x, torch.linalg.solve(dense, b.mT).mT, rtol=1e-3, atol=1e-4)


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
