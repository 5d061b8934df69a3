"""Linear least squares reduced to triangles: min ‖A x − b‖ for a batch of tall matrices, without AᵀA."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchimplicit.linear.vectors import times

FEW = 8  # the largest n whose columns are taken one by one, for the whole batch at once
CACHED = 2**17  # entries of A that are taken at once: as many as stay in the processor's cache between columns


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
        return torch.where(finite, R, torch.nan), times(Q.mT, b)
    at_once = max(1, CACHED // max(1, m * n))
    if A.device.type == "cpu" and A.shape[0] > at_once:
        parts = [triangularise(*part) for part in zip(A.split(at_once), b.split(at_once), strict=True)]
        R, c = (torch.cat(part) for part in zip(*parts, strict=True))
        return R, c
    if m <= 2 * FEW:  # so short sums run along the batch
        columns, dim = [*A.permute(2, 1, 0).contiguous(), b.mT.contiguous()], 0
    else:
        columns, dim = [*A.unbind(-1), b], 1
    rows = []
    for k in range(n):
        square = (columns[k] * columns[k]).sum(dim)
        zero = square == 0
        size = torch.where(zero, 1, square).sqrt()
        q = columns[k] * (1 / size).unsqueeze(dim)
        size = torch.where(zero, 0, size)
        row = [torch.zeros_like(size)] * k + [size]
        for j in range(k + 1, n + 1):
            row.append((q * columns[j]).sum(dim))
            columns[j] = torch.addcmul(columns[j], q, row[j].unsqueeze(dim), value=-1)
        rows.append(torch.stack(row, -1))
    triangle = torch.stack(rows, -2) if rows else A.new_zeros(len(A), 0, 1)
    return triangle[..., :n], triangle[..., n]


def solve_triangle(R: Tensor, c: Tensor, transposed: bool = False) -> Tensor:
    """x with R x = c, or Rᵀx = c: (B, n, n), (B, n) -> (B, n)."""
    n = R.shape[-1]
    if n > FEW:
        matrix = R.mT if transposed else R
        return torch.linalg.solve_triangular(matrix, c.unsqueeze(-1), upper=not transposed).squeeze(-1)
    x: dict[int, Tensor] = {}
    for k in range(n) if transposed else reversed(range(n)):
        rest = c[:, k]
        for j, known in x.items():
            rest = rest - (R[:, j, k] if transposed else R[:, k, j]) * known
        x[k] = rest / R[:, k, k]
    return torch.stack([x[k] for k in range(n)], -1) if x else c


def full_rank(R: Tensor) -> Tensor:
    """Whether a triangle R (B, n, n) of A, and so A itself, has full rank beyond rounding, (B,)."""
    R = R.detach()
    columns, pivots = torch.linalg.vector_norm(R, dim=-2), R.diagonal(dim1=-2, dim2=-1).abs()
    return (pivots > 16 * R.shape[-1] * torch.finfo(R.dtype).eps * columns).all(-1)
