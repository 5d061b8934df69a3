"""Every kind of operator with structure, made of tensors, beside the same matrix written out by dense means."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.linear import (
    Banded,
    BlockDiagonal,
    BlockTridiagonal,
    Dense,
    Diagonal,
    Kronecker,
    LinearOperator,
    LowRankUpdate,
    Sparse,
    Triangular,
    tridiagonal,
)
from torchimplicit.linear.pattern import Pattern

N = 6
ROWS = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5])
COLUMNS = torch.tensor([0, 4, 1, 5, 0, 2, 3, 3, 0, 1, 4, 2, 5, 5, 3])
OTHERS = torch.tensor([0, 5, 1, 2, 3, 3])  # a pattern that is no band, with a diagonal


class Case(NamedTuple):
    """``tensors(*batch)`` makes the parts, ``operator`` the operator of them, ``dense`` the matrix."""

    tensors: Callable[..., tuple[Tensor, ...]]
    operator: Callable[..., LinearOperator]
    dense: Callable[..., Tensor]


def draw(*shapes: tuple[int, ...]) -> Callable[..., tuple[Tensor, ...]]:
    """Normal numbers of these shapes after the batch, asymmetric, of either dtype."""

    def tensors(*batch: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
        return tuple(torch.randn((*batch, *shape), dtype=dtype) for shape in shapes)

    return tensors


def eye(n: int = N) -> Tensor:
    return torch.eye(n, dtype=torch.float64)


def near(A: Tensor, by: float = 3.0) -> Tensor:
    """A regular matrix: that many identities added."""
    return A + by * eye(A.shape[-1])


def off_diagonal(v: Tensor, k: int) -> Tensor:
    return torch.diag_embed(v, offset=k)


def bands_of(bands: Tensor, lower: int, upper: int) -> Tensor:
    """By one entry at a time."""
    n = bands.shape[-1]
    rows = [
        torch.stack(
            [bands[..., upper + i - j, j] if -upper <= i - j <= lower else 0 * bands[..., 0, j] for j in range(n)], -1
        )
        for i in range(n)
    ]
    return torch.stack(rows, -2)


def scattered(values: Tensor) -> Tensor:
    return torch.zeros(*values.shape[:-1], N, N, dtype=values.dtype).index_put(
        (
            *(torch.arange(k).reshape(-1, *(1,) * (values.ndim - 1 - i)) for i, k in enumerate(values.shape[:-1])),
            ROWS,
            COLUMNS,
        ),
        values,
        accumulate=True,
    )


def pattern() -> Pattern:
    return Pattern(ROWS, COLUMNS, N, N)


def heavy(values: Tensor) -> Tensor:
    return values + 4 * (ROWS == COLUMNS)


def kron(A: Tensor, B: Tensor) -> Tensor:
    """By blocks."""
    rows = [torch.cat([A[..., i, j, None, None] * B for j in range(A.shape[-1])], -1) for i in range(A.shape[-2])]
    return torch.cat(rows, -2)


def corner(A: Tensor, B: Tensor) -> Tensor:
    """A and B on the diagonal."""
    m, n = A.shape[-1], B.shape[-1]
    pad = torch.nn.functional.pad
    return pad(A, (0, n, 0, n)) + pad(B, (m, 0, m, 0))


def block_matrix(below: Tensor, diagonal: Tensor, above: Tensor) -> Tensor:
    """Block by block."""
    M = diagonal.shape[-3]
    blocks = {-1: below, 0: diagonal, 1: above}
    zero = torch.zeros_like(diagonal[..., 0, :, :])
    rows = []
    for i in range(M):
        row = [blocks[j - i][..., min(i, j), :, :] if abs(i - j) <= 1 else zero for j in range(M)]
        rows.append(torch.cat(row, -1))
    return torch.cat(rows, -2)


CASES = {
    "dense": Case(draw((N, N)), lambda A: Dense(near(A)), near),
    "diagonal": Case(draw((N,)), lambda d: Diagonal(d + 3), lambda d: torch.diag_embed(d + 3)),
    "tridiagonal": Case(
        draw((N - 1,), (N,), (N - 1,)),
        lambda a, b, c: tridiagonal(a, b + 4, c),
        lambda a, b, c: off_diagonal(a, -1) + off_diagonal(b + 4, 0) + off_diagonal(c, 1),
    ),
    "banded": Case(
        draw((4, N)),
        lambda t: Banded(t + 6 * (torch.arange(4) == 1).unsqueeze(-1), 2, 1),
        lambda t: near(bands_of(t, 2, 1), 6.0),
    ),
    "sparse": Case(draw((len(ROWS),)), lambda v: Sparse(heavy(v), pattern()), lambda v: scattered(heavy(v))),
    "sum": Case(
        draw((N,), (N - 1,), (N,), (N - 1,)),
        lambda d, a, b, c: Diagonal(d) + tridiagonal(a, b + 5, c),
        lambda d, a, b, c: torch.diag_embed(d + b + 5) + off_diagonal(a, -1) + off_diagonal(c, 1),
    ),
    "product": Case(
        draw((N,), (N - 1,), (N,), (N - 1,)),
        lambda d, a, b, c: Diagonal(d + 3) @ tridiagonal(a, b + 4, c),
        lambda d, a, b, c: (
            torch.diag_embed(d + 3) @ (torch.diag_embed(b + 4) + off_diagonal(a, -1) + off_diagonal(c, 1))
        ),
    ),
    "scaled": Case(
        draw((), (len(ROWS),)),
        lambda c, v: (c + 3) * Sparse(heavy(v), pattern()),
        lambda c, v: (c + 3)[..., None, None] * scattered(heavy(v)),
    ),
    "adjoint": Case(
        draw((4, N)),
        lambda t: Banded(t + 6 * (torch.arange(4) == 1).unsqueeze(-1), 2, 1).H,
        lambda t: near(bands_of(t, 2, 1), 6.0).mH,
    ),
    "transpose": Case(draw((len(ROWS),)), lambda v: Sparse(heavy(v), pattern()).T, lambda v: scattered(heavy(v)).mT),
    "inverse": Case(draw((N, N)), lambda A: Dense(near(A)).inverse, lambda A: torch.linalg.inv(near(A))),
    "Kronecker": Case(
        draw((2, 2), (2,), (3,), (2,)),
        lambda A, a, b, c: Kronecker(Dense(near(A)), tridiagonal(a, b + 4, c)),
        lambda A, a, b, c: kron(near(A), torch.diag_embed(b + 4) + off_diagonal(a, -1) + off_diagonal(c, 1)),
    ),
    "block diagonal": Case(
        draw((2, 2), (4,)),
        lambda A, d: BlockDiagonal([Dense(near(A)), Diagonal(d + 3)]),
        lambda A, d: corner(near(A), torch.diag_embed(d + 3)),
    ),
    "low rank": Case(
        draw((N,), (N, 2), (N, 2)),
        lambda d, U, V: LowRankUpdate(Diagonal(d + 6), U, V),
        lambda d, U, V: torch.diag_embed(d + 6) + U @ V.mH,
    ),
    "upper triangle": Case(draw((N, N)), lambda A: Triangular(near(A), True), lambda A: near(A).triu()),
    "lower triangle": Case(draw((N, N)), lambda A: Triangular(near(A), False), lambda A: near(A).tril()),
    "block tridiagonal": Case(
        draw((2, 2, 2), (3, 2, 2), (2, 2, 2)),
        lambda a, b, c: BlockTridiagonal(a, near(b, 5.0), c),
        lambda a, b, c: block_matrix(a, near(b, 5.0), c),
    ),
    "block bidiagonal": Case(
        draw((1, 3, 3), (2, 3, 3)),
        lambda a, b: BlockTridiagonal(a, near(b, 5.0)),
        lambda a, b: block_matrix(a, near(b, 5.0), 0 * a),
    ),
}
