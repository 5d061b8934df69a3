"""Test systems. All are non-symmetric unless asked otherwise, so that a missing transpose cannot pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torchimplicit.linear import LinearOperator, MatrixFree

EPS = {torch.float32: 1.2e-7, torch.complex64: 1.2e-7, torch.float64: 2.3e-16, torch.complex128: 2.3e-16}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def product(A: Tensor, x: Tensor) -> Tensor:
    return (A @ x.unsqueeze(-1)).squeeze(-1)


@pytest.fixture
def matrix() -> Callable[..., Tensor]:
    """A well-conditioned matrix (*batch, n, n): the identity and a random part of spectral radius about 1/2."""

    def make(n: int, batch: tuple[int, ...] = (), dtype: torch.dtype = torch.float64, definite: bool = False) -> Tensor:
        A = torch.eye(n, dtype=dtype) + torch.randn(*batch, n, n, dtype=dtype) * (0.5 / max(n, 1) ** 0.5)
        return A @ A.mH if definite else A

    return make


@pytest.fixture
def matrix_free() -> Callable[..., LinearOperator]:
    """A known by its products only."""

    def make(A: Tensor, **facts: bool) -> LinearOperator:
        return MatrixFree(lambda x: product(A, x), n=A.shape[-1], batch_shape=A.shape[:-2], dtype=A.dtype, **facts)

    return make


@pytest.fixture
def reference() -> Callable[..., Tensor]:
    """Independent truth: torch.linalg.solve, one system after the other."""

    def solve(A: Tensor, b: Tensor, adjoint: bool = False) -> Tensor:
        A = (A.mH if adjoint else A).expand(*b.shape, b.shape[-1])
        flat = [torch.linalg.solve(M, v) for M, v in zip(A.reshape(-1, *A.shape[-2:]), b.reshape(-1, b.shape[-1]))]
        return torch.stack(flat).reshape(b.shape) if flat else b

    return solve


@pytest.fixture
def close() -> Callable[..., None]:
    """The relative error of every system is at most `tol`."""

    def check(x: Tensor, truth: Tensor, tol: float | None = None) -> None:
        assert x.shape == truth.shape
        assert x.dtype == truth.dtype
        tol = 1e3 * EPS[x.dtype] if tol is None else tol
        error = torch.linalg.vector_norm(x - truth, dim=-1)
        assert (error <= tol * torch.linalg.vector_norm(truth, dim=-1)).all(), error.max().item()

    return check
