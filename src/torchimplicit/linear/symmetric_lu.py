"""Sparse symmetric matrices by elimination along the diagonal, whose pivots count the negative eigenvalues."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.linear.bilinear import multiply
from torchimplicit.linear.pattern import Pattern

REFINED = 2  # times: pivots on the diagonal are not chosen for their size


class SymmetricLU:
    """P D A D Pᵀ = L U for each matrix of a batch, entries (B, e) in the places of a pattern with a full diagonal, with a diagonal D.
    With U = S Lᵀ for a diagonal S, its signs are those of the eigenvalues of A (Sylvester's law of inertia).

    negative : how many eigenvalues of each are negative, (B,); −1 where elimination met a pivot of 0, or A is not finite.
    """

    def __init__(self, values: Tensor, pattern: Pattern) -> None:
        self.values, self.pattern = values, pattern
        batch = len(values)
        largest = values.new_zeros(batch, pattern.n)
        largest = largest.scatter_reduce(-1, pattern.rows.expand_as(values), values.abs(), "amax")
        self._scale = torch.where((largest > 0) & largest.isfinite(), largest, 1).rsqrt()
        scaled = values * self._scale[:, pattern.rows] * self._scale[:, pattern.columns]
        usable = scaled.isfinite().all(-1)
        self.negative = torch.full((batch,), -1)
        self._factors: list[tuple[Tensor, Any]] = []
        self._eliminate(scaled, usable.nonzero().flatten())

    def _eliminate(self, values: Tensor, systems: Tensor) -> None:
        from scipy.sparse import csc_array
        from scipy.sparse.linalg import splu

        k, n = len(systems), self.pattern.n
        if not k:
            return
        starts, columns = (index.numpy() for index in self.pattern.blocks(k))
        matrix = csc_array((values[systems].flatten().numpy(), columns, starts), shape=(k * n, k * n))
        try:
            lu = splu(
                matrix,
                permc_spec="MMD_AT_PLUS_A",
                diag_pivot_thresh=0.0,
                options={"SymmetricMode": True, "Equil": False},
            )
        except (RuntimeError, ArithmeticError):  # one of them has a pivot of 0: the others are found without it
            for one in systems.split(1) if k > 1 else ():
                self._eliminate(values, one)
            return
        self._factors.append((systems, lu))
        order = torch.from_numpy(lu.perm_c.astype("int64"))
        pivots = torch.from_numpy(lu.U.diagonal())[order].unflatten(0, (k, n))
        along = (order == torch.from_numpy(lu.perm_r.astype("int64"))).unflatten(0, (k, n)).all(-1)
        self.negative[systems] = torch.where(along, (pivots < 0).sum(-1), -1)

    def solve(self, b: Tensor) -> Tensor:
        """x with A x = b, (B, n), refined; NaN where there are no factors."""
        x = self._solved(b)
        for _ in range(REFINED):
            x = x + self._solved(b - multiply(self.pattern, self.values, x))
        return x

    def _solved(self, b: Tensor) -> Tensor:
        b = b * self._scale
        x = torch.full_like(b, torch.nan)
        for systems, lu in self._factors:
            x[systems] = (
                torch.from_numpy(lu.solve(b[systems].double().flatten().numpy())).to(b).unflatten(0, (-1, b.shape[-1]))
            )
        return x * self._scale
