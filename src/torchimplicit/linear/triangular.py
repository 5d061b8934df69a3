"""Linear least squares reduced to triangles: min ‖A x − b‖ for a batch of tall matrices, without AᵀA."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchimplicit.linear.masks import divide

FEW = 8  # the largest n whose columns are taken one by one, for the whole batch at once


def triangularise(A: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """R (B, n, n), upper triangular, and c (B, n) with ‖A x − b‖² = ‖R x − c‖² + a constant, for A (B, m, n) and b (B, m).

    Up to n = 8 by the modified Gram–Schmidt process on (A, b), which vectorises across the batch where LAPACK goes through it
    matrix by matrix. R and c are as accurate as Householder's, whatever becomes of the orthogonality of Q.
    Source: Björck, Numerics of Gram–Schmidt orthogonalization, Linear Algebra Appl. 197/198 (1994), section 4.
    """
    m, n = A.shape[-2:]
    if n > FEW:
        A, b = pad(A, (0, 0, 0, max(0, n - m))), pad(b, (0, max(0, n - m)))
        finite = A.detach().isfinite().flatten(1).all(1)[:, None, None]
        Q, R = torch.linalg.qr(torch.where(finite, A, 0))
        return torch.where(finite, R, torch.nan), apply(Q.mT, b)
    columns = [*A.unbind(-1), b]
    rows = []
    for k in range(n):
        size = torch.linalg.vector_norm(columns[k], dim=-1)
        q = divide(columns[k], size.unsqueeze(-1), (size > 0).unsqueeze(-1))
        row = [torch.zeros_like(size)] * k + [size]
        for j in range(k + 1, n + 1):
            row.append(torch.linalg.vecdot(q, columns[j]))
            columns[j] = columns[j] - row[j].unsqueeze(-1) * q
        rows.append(torch.stack(row, -1))
    triangle = torch.stack(rows, -2) if rows else A.new_zeros(len(A), 0, 1)
    return triangle[..., :n], triangle[..., n]


def solve_triangle(R: Tensor, c: Tensor) -> Tensor:
    """x with R x = c: (B, n, n), (B, n) -> (B, n)."""
    n = R.shape[-1]
    if n > FEW:
        return torch.linalg.solve_triangular(R, c.unsqueeze(-1), upper=True).squeeze(-1)
    x: list[Tensor] = []
    for k in reversed(range(n)):
        known = sum((R[:, k, k + 1 + i] * x[i] for i in range(len(x))), torch.zeros_like(c[:, k]))
        x.insert(0, (c[:, k] - known) / R[:, k, k])
    return torch.stack(x, -1) if x else c


def apply(A: Tensor, x: Tensor) -> Tensor:
    """A x for each system: (B, m, n), (B, n) -> (B, m)."""
    return (A @ x.unsqueeze(-1)).squeeze(-1)
