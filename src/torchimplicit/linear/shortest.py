"""Shortest solutions of systems that are singular to rounding: along a gauge Gaussian elimination divides noise by noise."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.linear.factors import DirectSolver
from torchimplicit.linear.lu import LU
from torchimplicit.linear.operators import Dense
from torchimplicit.transforms import finished, inside_functorch

NULL = 64  # in units of √n eps: a singular value that is smaller, beside the largest one, is zero;
ZERO = 8  # and one that is smaller than that leaves no doubt
HOPELESS = 0.99  # of b, outside the range: then the shortest step does next to nothing


class Inverse(NamedTuple):
    """Factors of A (B, n, n), and of the singular ones pseudo-inverses, in units in which A has entries of size one.

    What b has outside the range of A counts as if its singular value were one: it moves x a little along the gauge, and
    keeps a correction from being small where b is not.

    factors : the tensors of those of every A, for the backward, which judges A for itself.
    shortest, rows : the pseudo-inverses, (B, n, n), and which systems have them, (B,); none where no system has.
    others : the tensors of the factors of the others then, through which no derivative meets what is singular.
    """

    factors: tuple[Tensor, ...]
    shortest: Tensor | None = None
    rows: Tensor | None = None
    others: tuple[Tensor, ...] = ()

    def solve(self, solver: DirectSolver, b: Tensor) -> Tensor:
        """x with A x = b, the shortest of several: (B, n) -> (B, n). ``solver`` has made the factors."""
        if self.shortest is None or self.rows is None:
            return solver.from_tensors(self.factors).solve(b)
        rows, x = self.rows.unsqueeze(-1), (self.shortest @ b.unsqueeze(-1)).squeeze(-1)
        return torch.where(rows, x, solver.from_tensors(self.others).solve(torch.where(rows, 0, b)))


def invert(solver: DirectSolver, A: Tensor, b: Tensor) -> Inverse:
    """Of A (B, n, n): its factors, and pseudo-inverses where it is singular to rounding and b (B, n) not all but wholly outside its
    range.

    Where it is, no solution is any good. That is left to the factors, which may know A to be regular after all, unless nothing but
    rounding keeps A from being singular: there x is NaN.
    """
    factors = solver.factorize(Dense(A))
    if A.shape[-1] == 1 or finished(~factors.suspicious):
        return Inverse(factors.tensors)
    with torch.no_grad():
        at = torch.arange(len(A), device=A.device) if inside_functorch() else factors.suspicious.nonzero().squeeze(-1)
        inverse, singular = _pseudo_inverses(A[at], b[at])
        if finished(~singular):
            return Inverse(factors.tensors)
        inverse = torch.zeros_like(A).index_copy(0, at, inverse)
        rows = torch.zeros_like(factors.suspicious).index_copy(0, at, singular)
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    others = solver.factorize(Dense(torch.where(rows[:, None, None], eye, A)))
    return Inverse(factors.tensors, inverse, rows, others.tensors)


def _pseudo_inverses(A: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Pseudo-inverses (B, n, n), and of which systems they are to be used, (B,)."""
    n = A.shape[-1]
    usable = A.isfinite().flatten(1).all(1) & b.isfinite().all(-1)
    A, b = torch.where(usable[:, None, None], A, 0), torch.where(usable.unsqueeze(-1), b, 0)
    scaled = LU().factorize(Dense(A))  # so that a regular matrix in bad units is found to be one at little cost
    usable = usable & scaled.suspicious
    if finished(~usable):
        return A, usable
    d, c = scaled.tensors[-2:]
    U, S, Vh = torch.linalg.svd(d.unsqueeze(-1) * A * c.unsqueeze(-2))
    unit = n**0.5 * torch.finfo(A.dtype).eps * S[..., :1]
    null = S <= NULL * unit
    parts = (U.mT @ (d * b.detach()).unsqueeze(-1)).squeeze(-1)
    outside = torch.linalg.vector_norm(torch.where(null, parts, 0), dim=-1)
    hopeless = outside > HOPELESS * torch.linalg.vector_norm(parts, dim=-1)
    none = hopeless & (S <= ZERO * unit).any(-1)
    inverse = c.unsqueeze(-1) * (Vh.mT @ (torch.where(null, 1, 1 / S).unsqueeze(-1) * U.mT)) * d.unsqueeze(-2)
    inverse = torch.where(none[:, None, None], torch.nan, inverse)
    return inverse, usable & null.any(-1) & (none | ~hopeless)
