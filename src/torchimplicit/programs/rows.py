"""The constraints' rows of a batch of programs as one linear map."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """R: rows C (B, k, n) that may have any entries, then blocks of n rows that are diagonal, (B, n, 1) each: those of bounds.

    All vectors are columns, (B, n, c) and (B, M, c) with M = k + n · blocks.
    """

    C: Tensor
    diagonals: tuple[Tensor, ...] = ()

    @cached_property
    def T(self) -> Tensor:
        """Cᵀ, laid out as one: products of many small matrices take half the time."""
        return self.C.mT.contiguous()

    def parts(self, y: Tensor) -> list[Tensor]:
        """What belongs to C, and to each of the diagonals."""
        k, n = self.C.shape[-2:]
        return list(y.split([k, *[n] * len(self.diagonals)], -2))

    def apply(self, x: Tensor) -> Tensor:
        """R x."""
        product = times(self.C, x)
        return torch.cat([product, *(d * x for d in self.diagonals)], -2) if self.diagonals else product

    def transposed(self, y: Tensor) -> Tensor:
        """Rᵀ y."""
        first, *others = self.parts(y)
        product = times(self.T, first)
        for d, part in zip(self.diagonals, others, strict=True):
            product = product + d * part
        return product

    def abs(self) -> Rows:
        """With the sizes of all entries."""
        return Rows(self.C.abs(), tuple(d.abs() for d in self.diagonals))

    def dense(self) -> Tensor:
        """R as one matrix, (B, M, n)."""
        return torch.cat([self.C, *(torch.diag_embed(d.squeeze(-1)) for d in self.diagonals)], -2)

    def gram(self, weights: Tensor, Q: Tensor) -> Tensor:
        """Q + Rᵀ diag(weights) R, (B, n, n), for weights (B, M, 1)."""
        first, *others = self.parts(weights)
        matrix = torch.baddbmm(Q, self.T, first * self.C)
        for d, part in zip(self.diagonals, others, strict=True):
            matrix.diagonal(dim1=-2, dim2=-1).add_((d * d * part).squeeze(-1))
        return matrix

    def of_systems(self, which: Tensor) -> Rows:
        """Those of some systems of the batch."""
        return Rows(self.C[which], tuple(d[which] for d in self.diagonals))


def times(C: Tensor, x: Tensor) -> Tensor:
    """C x for columns x, as xᵀ Cᵀ: this way round, batches of small matrices take half the time."""
    return torch.bmm(x.mT, C.mT).mT


def largest(v: Tensor) -> Tensor:
    """The largest size of a number in each column, (B, 1, c)."""
    return (
        torch.linalg.vector_norm(v, torch.inf, -2, keepdim=True) if v.shape[-2] else v.new_zeros(len(v), 1, v.shape[-1])
    )
