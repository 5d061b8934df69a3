"""Shortest solutions of systems that are singular to rounding: along a gauge Gaussian elimination divides noise by noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import occurs, values_hidden
from torchimplicit.linear.dense import Dense
from torchimplicit.linear.factors import DirectSolver, Factors, equilibrate
from torchimplicit.linear.lu import LU
from torchimplicit.norms import rms

NULL = 8  # in units of √n eps: a singular value that is smaller, beside the largest one, is zero
NOISE = 10  # and so is a small one that is no larger than so many times what it changes by from one point to the next
HOPELESS = 0.9  # of b, outside the range: then the shortest step does next to nothing


class ShortestInverse(NamedTuple):
    """Factors of A (B, n, n), and of the singular ones pseudo-inverses, in units in which A has entries of size one.

    What b has outside the range of A counts as if its singular value were one, or, where x is far out along the gauge, as little as
    makes x change by the part of itself that this is of the terms of A x: it moves x along the gauge, and keeps a correction from
    being small, beside x, where b is not, beside those terms.

    factors : the tensors of those of every A, for the backward, which judges A for itself: in its own units first, and, where its
        pivots are very far apart in these, in units in which it has entries of size one, so that what was only in bad units is no
        longer suspicious.
    shortest, rows : the pseudo-inverses, (B, n, n), and which systems have them, (B,); none where no system has.
    others : the tensors of the factors of the others then, through which no derivative meets what is singular.
    some_suspicious : whether pivots of one are very far apart in the units of A
        (:attr:`torchimplicit.linear.factors.Factors.some_suspicious`).
    """

    factors: tuple[Tensor, ...]
    shortest: Tensor | None = None
    rows: Tensor | None = None
    others: tuple[Tensor, ...] = ()
    some_suspicious: bool = False

    def solve(self, solver: DirectSolver, b: Tensor) -> Tensor:
        """x with A x = b, the shortest of several: (B, n) -> (B, n). ``solver`` has made the factors."""
        if self.shortest is None or self.rows is None:
            return solver.from_tensors(self.factors).solve(b)
        rows, x = self.rows.unsqueeze(-1), (self.shortest @ b.unsqueeze(-1)).squeeze(-1)
        return torch.where(rows, x, solver.from_tensors(self.others).solve(torch.where(rows, 0, b)))


def invert(
    solver: DirectSolver, A: Tensor, b: Tensor, z: Tensor, again: Callable[[], Tensor | None]
) -> ShortestInverse:
    """Of A (B, n, n): its factors, and pseudo-inverses where it is singular to rounding. Where b (B, n) then lies outside its range
    all but wholly, no solution is any good, and x is NaN. x is a correction of z (B, n).

    ``again`` : asked for only where A may be singular, gives A at a point beside this one, or None. A singular value that is not the
    same there is rounding: that of the function, which may be much more than eps.
    """
    factors = solver.factorize(Dense(A))
    if A.shape[-1] == 1 or values_hidden() or not factors.some_suspicious:
        return ShortestInverse(factors.tensors)
    at = factors.suspicious.nonzero().squeeze(-1)
    scaled = factors if solver == LU() else LU().factorize(Dense(A))
    if isinstance(solver, LU):
        factors, solver = scaled, LU()
    with torch.no_grad():
        inverse, rows = _pseudo_inverses(A.detach(), b.detach(), z.detach(), at, scaled, again)
        if not occurs(rows):
            return ShortestInverse(factors.tensors, some_suspicious=True)
        eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    others = solver.factorize(Dense(torch.where(rows[:, None, None], eye, A)))
    return ShortestInverse(factors.tensors, inverse, rows, others.tensors, some_suspicious=True)


def _pseudo_inverses(
    A: Tensor, b: Tensor, z: Tensor, at: Tensor, scaled: Factors, again: Callable[[], Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Pseudo-inverses (B, n, n) of those of the systems ``at`` that have one, and which these are, (B,). ``scaled`` : the factors of A
    in units in which it has entries of size one: what was only in bad units is found to be regular at little cost."""
    inverses, rows = torch.zeros_like(A), torch.zeros(len(A), dtype=torch.bool, device=A.device)
    at = at[A[at].isfinite().flatten(1).all(1) & b[at].isfinite().all(-1)]
    suspicious = scaled.suspicious[at]
    if not occurs(suspicious):
        return inverses, rows
    other = again()
    change = None if other is None else (other - A)[at]
    d, c = (unit[at] for unit in scaled.tensors[-2:])
    found = _decomposed(A[at], change, d, c)
    fewer = torch.zeros_like(suspicious)
    if occurs(found.null):  # a root's numbers may have sizes that no row or column of A tells of
        size = z[at].abs()
        of_z = torch.where(size > 0, size, rms(size).unsqueeze(-1))
        _, d, c = equilibrate(A[at] * of_z.unsqueeze(-2))
        own = _decomposed(A[at], change, d, of_z * c)
        fewer = own.null.sum(-1) < found.null.sum(-1)
        found = Decomposed(
            *(torch.where(fewer.reshape(-1, *(1,) * (x.ndim - 1)), x, y) for x, y in zip(own, found, strict=True))
        )
    U, S, Vh, null, d, c = found
    parts = (U.mT @ (d * b[at]).unsqueeze(-1)).squeeze(-1)
    outside = torch.linalg.vector_norm(torch.where(null, parts, 0), dim=-1)
    hopeless = outside > HOPELESS * torch.linalg.vector_norm(parts, dim=-1)
    far = _far(d.unsqueeze(-1) * A[at], c.unsqueeze(-1) * Vh.mT, null, z[at])
    inverse = c.unsqueeze(-1) * (Vh.mT @ (torch.where(null, far, 1 / S).unsqueeze(-1) * U.mT)) * d.unsqueeze(-2)
    inverse = torch.where(hopeless[:, None, None], torch.nan, inverse)
    return inverses.index_copy(0, at, inverse), rows.index_copy(0, at, suspicious & (null.any(-1) | fewer))


class Decomposed(NamedTuple):
    """D A C = U S Vᴴ, which of the singular values are zero but for rounding, (B, n), and the diagonals of D and C."""

    U: Tensor
    S: Tensor
    Vh: Tensor
    null: Tensor
    d: Tensor
    c: Tensor


def _decomposed(A: Tensor, change: Tensor | None, d: Tensor, c: Tensor) -> Decomposed:
    """Of A (B, n, n) in the units d and c, with what A changes by from one point to the next."""
    U, S, Vh = torch.linalg.svd(d.unsqueeze(-1) * A * c.unsqueeze(-2))
    eps = torch.finfo(A.dtype).eps
    null = S <= NULL * A.shape[-1] ** 0.5 * eps * S[:, :1]
    if change is not None:
        change = U.mT @ (d.unsqueeze(-1) * change * c.unsqueeze(-2)) @ Vh.mT
        small = S <= eps**0.5 * S[:, :1]
        change = torch.where(small.unsqueeze(-1) & small.unsqueeze(-2), change, 0).abs().flatten(1).amax(1)
        null = null | (small & (NOISE * change.unsqueeze(-1) >= S))
    return Decomposed(U, S, Vh, null, d, c)


def _far(A: Tensor, V: Tensor, null: Tensor, z: Tensor) -> Tensor:
    """How much longer z is than the terms of A z (whose rows are scaled), in units of the directions of a gauge, which are some columns
    of V; at least 1, (B, 1). At infinity all derivatives may vanish, and nothing but constants be left, beside which z is huge."""
    terms = (A.abs() @ z.abs().unsqueeze(-1)).squeeze(-1).amax(-1)
    unit = torch.where(null.unsqueeze(-2), V, 0).abs().flatten(1).amax(-1)
    far = z.abs().amax(-1) / (terms * unit)
    return torch.where(far.isfinite(), far.clamp(min=1), 1).unsqueeze(-1)
