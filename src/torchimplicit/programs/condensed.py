"""The linear systems of a program's optimality conditions, condensed onto its unknowns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from torchimplicit.programs.rows import Rows, times

PROXIMAL = (
    1e-8  # what stands in for a curvature, or a dependence of rows, of 0, where the data are scaled to entries of 1
)


class Condensed:
    """An approximate inverse of

        K = [ Q   Rᵀ ]
            [ R  −W  ]

    with W ≥ 0 diagonal and infinite in rows that are left out: that of K with Q + εI and W + εI, which is regular for every convex
    program, dependent rows or none. What remains of a residual shrinks by about ε in each :meth:`refined` step, but for the part that
    no solution removes. Factorised is the n × n matrix Q + εI + Rᵀ(W + εI)⁻¹R.

    Source: Friedlander and Orban, A primal-dual regularized interior-point method for convex quadratic programs, Math. Prog. Comp. 4
    (2012), section 3.
    """

    def __init__(
        self,
        Q: Tensor,
        rows: Rows,
        W: Tensor,
        L: Tensor | None = None,
        proximal: float = PROXIMAL,
        curvature: float = 0.0,
    ) -> None:
        self.Q, self.rows, self.W = Q, rows, W
        self.weights = 1 / (W + proximal)
        if L is None:
            H = rows.gram(self.weights, Q)
            H.diagonal(dim1=-2, dim2=-1).add_(proximal + curvature)
            L, _ = torch.linalg.cholesky_ex(H)
        self.L = L

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All there is, so that it can be handed on and rebuilt (:meth:`of`)."""
        return (self.Q, self.W, self.L, self.rows.C, *self.rows.diagonals)

    @staticmethod
    def of(tensors: Sequence[Tensor]) -> Condensed:
        """The inverse again, from its tensors."""
        Q, W, L, C, *diagonals = tensors
        return Condensed(Q, Rows(C, tuple(diagonals)), W, L)

    def of_systems(self, which: Tensor) -> Condensed:
        """Some systems of the batch."""
        return Condensed(self.Q[which], self.rows.of_systems(which), self.W[which], self.L[which])

    def put(self, which: Tensor, other: Condensed) -> Condensed:
        """With the systems of ``other`` in the places ``which``; Q and R are the same."""
        W, L = (a.index_copy(0, which, b) for a, b in ((self.W, other.W), (self.L, other.L)))
        return Condensed(self.Q, self.rows, W, L)

    def approximate(self, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x, y) with K (x, y) ≈ (r, t), for columns r (B, n, c) and t (B, M, c)."""
        half = torch.linalg.solve_triangular(self.L, r + self.rows.transposed(self.weights * t), upper=False)
        x = torch.linalg.solve_triangular(self.L.mT, half, upper=True)
        return x, self.weights * (self.rows.apply(x) - t)

    def residual(self, x: Tensor, y: Tensor, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(r, t) − K (x, y); 0 in rows that are left out, where y is 0."""
        W, kept = self._kept
        rest = torch.addcmul(t - self.rows.apply(x), W, y) * kept
        return r - times(self.Q, x) - self.rows.transposed(y), rest

    @cached_property
    def _kept(self) -> tuple[Tensor, Tensor]:
        """W in rows that are kept, and 1 there; 0 in others."""
        kept = self.W < torch.inf
        return torch.where(kept, self.W, 0), kept.to(self.W.dtype)

    def refined(self, r: Tensor, t: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """The same, refined in so many steps."""
        x, y = self.approximate(r, t)
        for _ in range(steps):
            dx, dy = self.approximate(*self.residual(x, y, r, t))
            x, y = x + dx, y + dy
        return x, y
