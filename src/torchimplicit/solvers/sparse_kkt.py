"""The matrix of the optimality conditions of a large minimum under constraints, by its entries: nothing of size n² is formed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished
from torchimplicit.linear.bilinear import multiply
from torchimplicit.linear.jacobian import Jacobian, memory_of
from torchimplicit.linear.pattern import Pattern
from torchimplicit.linear.superlu import SuperLU, factors_pay
from torchimplicit.linear.symmetric_lu import SymmetricLU
from torchimplicit.solvers.equations import Equations
from torchimplicit.solvers.kkt import SEMIDEFINITE, Curvature, Kkt, Written
from torchimplicit.sparsity.construction import mirrored

DENSE_LIMIT = 4096  # unknowns and multipliers of a system up to which a dense matrix of them is factorised
FIRST = 1e-3  # times the largest entry of a Hessian: a damping to make it positive definite,
MORE = 3  # and so many times as much where that has not been enough: more than is needed makes steps short
ENOUGH = 10  # times its largest entry, more than which none is tried


def kkt_of(equations: Equations, jacobian: Jacobian) -> Kkt:
    """K, by its entries where its pattern is known and factors stay small, else written out.

    Raises ValueError where that would be too large.
    """
    memory, N = memory_of(jacobian), jacobian.shape[-1]
    pattern, why_not = None, "nobody was to look for it (sparsity='off')"
    if memory is not None:
        pattern = memory.pattern(jacobian, lambda: mirrored(equations.pattern_of_slope(jacobian.z), N))
        matrix = None if pattern is None else memory.entries(jacobian)
        pattern = memory.pattern(jacobian)  # none, if entries were seen outside of it
        why_not = memory.why_not
        if pattern is not None and pattern.symmetric:
            if factors_pay(pattern):
                matrix = memory.assembled(jacobian, "the solve") if matrix is None else matrix  # some are not finite
                return Entries(matrix.values, pattern)
            why_not = "the factors of a sparse one would be large too"
    if N > DENSE_LIMIT:
        raise ValueError(
            f"constraints: {equations.kind.unknowns(jacobian.z)} unknowns and their multipliers make a matrix of {N} × {N} for each "
            f"system, and dense ones are factorised up to {DENSE_LIMIT}: {why_not}. Write the objective and the constraints so that "
            "few unknowns act on each other (elementwise operations, slices, differences, sparse products; sums over all are fine in "
            "constraints), pose fewer unknowns, or take bounds= or ti.projections for what these can say."
        )
    return Written(jacobian.to_dense())


class Entries(NamedTuple):
    """K by its entries (B, e), in the places of a symmetric pattern that has the whole diagonal."""

    values: Tensor
    pattern: Pattern

    def where(self, rows: Tensor, other: Any) -> Entries:
        return Entries(torch.where(rows.unsqueeze(-1), self.values, other.values), self.pattern)

    def plus(self, diagonal: Tensor) -> Entries:
        return Entries(self.values.index_add(-1, on_diagonal(self.pattern), diagonal), self.pattern)

    def times(self, x: Tensor) -> Tensor:
        return multiply(self.pattern, self.values, x)

    def transposed(self, y: Tensor) -> Tensor:
        return multiply(self.pattern, self.values, y, adjoint=True)

    def largest(self, columns: int) -> Tensor:
        size = torch.where(self.pattern.columns < columns, self.values.abs(), 0)
        zeros = size.new_zeros(len(size), self.pattern.n)
        return zeros.scatter_reduce(-1, self.pattern.rows.expand_as(size), size, "amax")

    def solved(self, held: Tensor, unit: Tensor, b: Tensor) -> Tensor:
        rows = self.pattern.rows
        values = torch.where(held[:, rows], 0, self.values / unit[:, rows])
        A = Entries(values, self.pattern).plus(held.to(values))
        factors = SuperLU(A.values, A.pattern)
        x = factors.solve(b)
        return x + factors.solve(b - A.times(x))  # with pivots that are not always the largest

    def curvature(self, penalties: Tensor, signs: Tensor) -> Curvature:
        n = self.pattern.n - signs.shape[-1]
        of_rows = torch.nn.functional.pad(signs, (n, 0), value=1.0)
        return Bordered(self.values * of_rows[:, self.pattern.rows], self.pattern, penalties)


class Bordered(NamedTuple):
    """∇²L + Jᵀ Ω J as what is left of the symmetric matrix ((∇²L, Jᵀ), (J, −Ω⁻¹)) (entries (B, e)) when the lower unknowns are
    eliminated: J is not multiplied out, and a full row of it fills nothing. Where the matrix has just one negative eigenvalue for each
    constraint that has a part, the Hessian is positive definite.

    Source: Haynsworth, Determination of the inertia of a partitioned Hermitian matrix, Linear Algebra Appl. 1 (1968).
    """

    values: Tensor
    pattern: Pattern
    penalties: Tensor

    def convex(self, held: Tensor) -> Tensor:
        return self._definite(
            self._factorised(held, torch.finfo(self.values.dtype).eps ** SEMIDEFINITE * self._largest())
        )

    def direction(self, gradient: Tensor, held: Tensor, damping: Tensor) -> Tensor:
        largest = self._largest()
        factors = self._factorised(held, damping)
        definite = self._definite(factors)
        more = FIRST * largest
        while not finished(definite | ~(more <= ENOUGH * largest)):
            damping = torch.where(definite, damping, damping.maximum(more))
            factors = self._factorised(held, damping)
            definite, more = self._definite(factors), MORE * more
        b = torch.cat([torch.where(held, 0, -gradient), torch.zeros_like(self.penalties)], -1)
        return factors.solve(b)[:, : gradient.shape[-1]]

    def _factorised(self, held: Tensor, damping: Tensor) -> SymmetricLU:
        rows, columns = self.pattern.rows, self.pattern.columns
        acts = self.penalties > 0
        free = torch.cat([~held, acts], -1)
        inside = torch.where(free[:, rows] & free[:, columns], self.values, 0)
        on_z = torch.where(held, 1, damping.unsqueeze(-1))
        below = torch.where(acts, -1 / torch.where(acts, self.penalties, 1), 1)
        matrix = Entries(inside, self.pattern).plus(torch.cat([on_z, below], -1))
        return SymmetricLU(matrix.values, self.pattern)

    def _definite(self, factors: SymmetricLU) -> Tensor:
        return factors.negative == (self.penalties > 0).sum(-1)

    def _largest(self) -> Tensor:
        """The size of the largest entry of the Hessian, about: that of the two terms, of which the second has it on the diagonal."""
        rows, columns = self.pattern.rows, self.pattern.columns
        n = self.pattern.n - self.penalties.shape[-1]
        of_L = torch.where((rows < n) & (columns < n), self.values.abs(), 0).amax(-1)
        weights = torch.nn.functional.pad(self.penalties, (n, 0))
        terms = torch.where(columns < n, weights[:, rows] * self.values.square(), 0)
        zeros = terms.new_zeros(len(terms), self.pattern.n)
        of_J = zeros.scatter_add(-1, columns.expand_as(terms), terms).amax(-1)
        return of_L.maximum(of_J).clamp(min=torch.finfo(terms.dtype).tiny)


def on_diagonal(pattern: Pattern) -> Tensor:
    """Which entries are on the diagonal, one for each row."""
    return (pattern.rows == pattern.columns).nonzero().flatten()
