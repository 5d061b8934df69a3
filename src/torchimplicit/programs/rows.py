"""The constraints' rows of a batch of programs as one linear map."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """R: rows C (B, k, n) that may have any entries, then blocks of n rows that are diagonal, (B, n, 1) each: those of bounds.

    All vectors are columns, (B, n, c) and (B, M, c) with M = k + n · blocks.
    """

    C: Tensor
    diagonals: tuple[Tensor, ...] = ()

    def parts(self, y: Tensor) -> list[Tensor]:
        """What belongs to C, and to each of the diagonals."""
        k, n = self.C.shape[-2:]
        return list(y.split([k, *[n] * len(self.diagonals)], -2))

    def apply(self, x: Tensor) -> Tensor:
        """R x."""
        product = self.C @ x
        return torch.cat([product, *(d * x for d in self.diagonals)], -2) if self.diagonals else product

    def transposed(self, y: Tensor) -> Tensor:
        """Rᵀ y."""
        first, *others = self.parts(y)
        product = self.C.mT @ first
        for d, part in zip(self.diagonals, others, strict=True):
            product = product + d * part
        return product

    def gram(self, weights: Tensor) -> Tensor:
        """Rᵀ diag(weights) R, (B, n, n), for weights (B, M, 1)."""
        first, *others = self.parts(weights)
        matrix = self.C.mT @ (first * self.C)
        for d, part in zip(self.diagonals, others, strict=True):
            matrix.diagonal(dim1=-2, dim2=-1).add_((d * d * part).squeeze(-1))
        return matrix

    def of_systems(self, which: Tensor) -> Rows:
        """Those of some systems of the batch."""
        return Rows(self.C[which], tuple(d[which] for d in self.diagonals))
