"""The constraints' rows of a batch of programs as one linear map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

FEW = 400  # multiplications of a product below which PyTorch does without BLAS


@dataclass(frozen=True)
class Rows:
    """R: rows C (B, k, n) that may have any entries, then blocks of n rows that are diagonal, (B, n, 1) each: those of bounds.

    All vectors are columns, (B, n, c) and (B, M, c) with M = k + n · blocks.
    """

    C: Tensor
    diagonals: tuple[Tensor, ...] = ()

    @cached_property
    def T(self) -> Tensor:
        """Cᵀ, laid out by rows too."""
        return self.C.mT.contiguous()

    def parts(self, y: Tensor) -> list[Tensor]:
        """What belongs to C, and to each of the diagonals."""
        k, n = self.C.shape[-2:]
        return list(y.split([k, *[n] * len(self.diagonals)], -2))

    def apply(self, x: Tensor) -> Tensor:
        """R x."""
        product = torch.bmm(x.mT, self.C.mT).mT
        return stacked([product, *(d * x for d in self.diagonals)]) if self.diagonals else product

    def transposed(self, y: Tensor) -> Tensor:
        """Rᵀ y."""
        first, *others = self.parts(y)
        product = torch.bmm(first.mT, self.T.mT if _few(self.C, y) else self.C).mT
        for d, part in zip(self.diagonals, others, strict=True):
            product = product + d * part
        return product

    @cached_property
    def sizes(self) -> Rows:
        """Those of all entries."""
        return Rows(self.C.abs(), tuple(d.abs() for d in self.diagonals))

    def dense(self) -> Tensor:
        """R as one matrix, (B, M, n)."""
        return torch.cat([self.C, *(torch.diag_embed(d.squeeze(-1)) for d in self.diagonals)], -2)

    def gram(self, weights: Tensor, Q: Tensor) -> Tensor:
        """Q + Rᵀ diag(weights) R, (B, n, n), for weights (B, M, 1)."""
        first, *others = self.parts(weights)
        matrix = torch.baddbmm(Q, self.C.mT, first * self.C)
        for d, part in zip(self.diagonals, others, strict=True):
            matrix.diagonal(dim1=-2, dim2=-1).add_((d * d * part).squeeze(-1))
        return matrix

    def to(self, dtype: torch.dtype) -> Rows:
        """The same numbers in another precision."""
        return Rows(self.C.to(dtype), tuple(d.to(dtype) for d in self.diagonals))

    def of_systems(self, which: Tensor) -> Rows:
        """Those of some systems of the batch."""
        return Rows(self.C[which], tuple(d[which] for d in self.diagonals))


def times(Q: Tensor, x: Tensor) -> Tensor:
    """Q x for symmetric Q (B, n, n) and columns x (B, n, c)."""
    return torch.bmm(x.mT, Q.mT).mT


def _few(C: Tensor, y: Tensor) -> bool:
    """Whether a product is done without BLAS, and fastest as one with the transpose of what is laid out by rows, as C x is xᵀ Cᵀ."""
    return y.shape[-1] * C.shape[-1] * C.shape[-2] < FEW


def beside(*columns: Tensor) -> Tensor:
    """Several columns (B, n, c) side by side, each laid out for itself, as products want them."""
    return torch.cat([x.mT for x in columns], -2).mT


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Columns (B, n, c) one under the other, laid out in the same way."""
    return torch.cat([x.mT for x in parts], -1).mT


def largest(v: Tensor) -> Tensor:
    """The largest size of a number in each column, (B, 1, c)."""
    return v.abs().amax(-2, keepdim=True) if v.shape[-2] else v.new_zeros(len(v), 1, v.shape[-1])


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The products of columns (B, n, c), (B, 1, c)."""
    return (a * b).sum(-2, keepdim=True)
