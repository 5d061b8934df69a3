"""LU of matrices so small that a call of LAPACK takes longer than the arithmetic: written out, entry by entry, for a graph that is
being made, in which it becomes part of the kernels around it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

LARGEST = 4  # n


def factor(A: Tensor) -> tuple[Tensor, Tensor]:
    """(LU, pivots) of A (..., n, n), as of ``torch.linalg.lu_factor``."""
    n = A.shape[-1]
    a = [[A[..., i, j] for j in range(n)] for i in range(n)]
    pivots = []
    for k in range(n):
        row, size = torch.full_like(a[k][k], k, dtype=torch.int32), a[k][k].abs()
        for i in range(k + 1, n):
            larger = a[i][k].abs() > size
            row, size = torch.where(larger, i, row), torch.where(larger, a[i][k].abs(), size)
        for i in range(k + 1, n):
            here = row == i
            for j in range(n):
                a[i][j], a[k][j] = torch.where(here, a[k][j], a[i][j]), torch.where(here, a[i][j], a[k][j])
        for i in range(k + 1, n):
            a[i][k] = a[i][k] / a[k][k]
            for j in range(k + 1, n):
                a[i][j] = a[i][j] - a[i][k] * a[k][j]
        pivots.append(row + 1)
    return torch.stack([torch.stack(row, -1) for row in a], -2), torch.stack(pivots, -1)


def solve(LU: Tensor, pivots: Tensor, b: Tensor, adjoint: bool) -> Tensor:
    """x with A x = b, or Aᴴ x = b, for columns b (..., n, k)."""
    n = LU.shape[-1]
    a = [[(LU[..., j, i, None].conj() if adjoint else LU[..., i, j, None]) for j in range(n)] for i in range(n)]
    x = [b[..., i, :] for i in range(n)]
    if not adjoint:
        x = _permuted(x, pivots, range(n))
        for i in range(n):
            for k in range(i):
                x[i] = x[i] - a[i][k] * x[k]
        for i in reversed(range(n)):
            for k in range(i + 1, n):
                x[i] = x[i] - a[i][k] * x[k]
            x[i] = x[i] / a[i][i]
        return torch.stack(x, -2)
    for i in range(n):
        for k in range(i):
            x[i] = x[i] - a[i][k] * x[k]
        x[i] = x[i] / a[i][i]
    for i in reversed(range(n)):
        for k in range(i + 1, n):
            x[i] = x[i] - a[i][k] * x[k]
    return torch.stack(_permuted(x, pivots, reversed(range(n))), -2)


def _permuted(x: list[Tensor], pivots: Tensor, order: Iterable[int]) -> list[Tensor]:
    x = list(x)
    for k in order:
        for i in range(k + 1, len(x)):
            here = pivots[..., k, None] == i + 1
            x[i], x[k] = torch.where(here, x[k], x[i]), torch.where(here, x[i], x[k])
    return x


def solve_definite(A: Tensor, b: Tensor) -> Tensor:
    """x with A x = b for symmetric positive definite A (..., n, n) and columns b (..., n, k): by Gauss and Jordan, without pivots."""
    n = A.shape[-1]
    whole = torch.cat([A, b], -1)
    rows = torch.arange(n, device=A.device).unsqueeze(-1)
    for k in range(n):
        row = whole[..., k : k + 1, :] / whole[..., k : k + 1, k : k + 1]
        whole = torch.where(rows == k, row, whole - whole[..., :, k : k + 1] * row)
    return whole[..., n:]
