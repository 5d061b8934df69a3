"""Minima under constraints seen from one point: the augmented Lagrangian there, and Newton's step on the optimality conditions.

w = (z, multipliers), (B, N); F(w) = (∇L, c, −h) for the constraints c = 0 and h ≤ 0, and K its Jacobian. Multipliers of inequalities
have the lower bound 0, those of equalities none, by which they are told apart.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished
from torchimplicit.bounds import projected_gradient
from torchimplicit.norms import measured
from torchimplicit.solvers.kkt import Curvature, Kkt

PASSES = 10  # in search of the constraints that hold in the linearised conditions
LOOSE = 0.575  # eps to this power, in the unit of a constraint over its multiplier: what makes Newton's step unique where constraints
# depend on each other

HALF = 0.5  # of the violation of a constraint: what a step may leave, or so much of the size of z
MET = 0.45  # (eps to this power)


class Point(NamedTuple):
    """w, with the objective φ (B,), F (B, N) and K there, a :class:`Kkt`."""

    w: Tensor
    value: Tensor
    F: Tensor
    K: Any

    def where(self, rows: Tensor, other: Point) -> Point:
        """This one in ``rows`` (B,), the other elsewhere."""
        each = rows.unsqueeze(-1)
        return Point(
            torch.where(each, self.w, other.w),
            torch.where(rows, self.value, other.value),
            torch.where(each, self.F, other.F),
            self.K.where(rows, other.K),
        )


class Lagrangian(NamedTuple):
    """M(z) = φ + Σ (m̂² − m²) / 2ω with m̂ = m + ωc, or max(m + ωh, 0): the augmented Lagrangian.

    lower, upper : bounds of w.
    estimates, weights : of the multipliers, m, and the penalties ω; (B, m) each.
    unit : what a residual of F counts in z's unit, (B, N).
    """

    lower: Tensor
    upper: Tensor
    estimates: Tensor
    weights: Tensor
    unit: Tensor

    @property
    def n(self) -> int:
        """The number of unknowns z."""
        return self.lower.shape[-1] - self.weights.shape[-1]

    @property
    def signs(self) -> Tensor:
        """1 for equalities, −1 for inequalities, which F has negative: (B, m)."""
        return torch.where(self.lower[:, self.n :] == -torch.inf, 1.0, -1.0).to(self.weights)

    def multipliers(self, constraints: Tensor) -> Tensor:
        """m̂, which the multipliers become where M is smallest."""
        return (self.estimates + self.weights * constraints).clamp(min=self.lower[:, self.n :])

    def merit(self, value: Tensor, constraints: Tensor) -> Tensor:
        """M, (B,)."""
        more = self.multipliers(constraints).square() - self.estimates.square()
        return value + (more / (2 * self.weights)).sum(-1)

    def violation(self, constraints: Tensor) -> Tensor:
        """The largest violation of a constraint, or slack of one with a multiplier, in z's unit: (B,)."""
        change = (self.multipliers(constraints) - self.estimates) / self.weights
        return (change * self.unit[:, self.n :]).abs().amax(-1)

    def gradient(self, at: Point) -> Tensor:
        """∇M in z, (B, n)."""
        n, signs = self.n, self.signs
        force = signs * (self.multipliers(signs * at.F[:, n:]) - at.w[:, n:])
        return at.F[:, :n] + at.K.transposed(torch.nn.functional.pad(force, (n, 0)))[:, :n]

    def derivatives(self, at: Point) -> tuple[Tensor, Curvature]:
        """∇M in z, (B, n), and ∇²M with the multipliers of ``at``."""
        n, signs = self.n, self.signs
        pressed = self.multipliers(signs * at.F[:, n:]) > self.lower[:, n:]
        return self.gradient(at), at.K.curvature(torch.where(pressed, self.weights, 0), signs)

    @property
    def of_w(self) -> Tensor:
        """What a number of w counts in z's unit, (B, N)."""
        n, unit = self.n, self.unit
        return torch.cat([torch.ones_like(unit[:, :n]), unit[:, :1] / unit[:, n:]], -1)

    def residual(self, at: Point) -> Tensor:
        """The largest residual of the optimality conditions, in z's unit, (B,): as long as the units are the same, of one measure."""
        of_w = self.of_w
        residual = projected_gradient(at.F * self.unit, at.w * of_w, self.lower * of_w, self.upper * of_w)
        return residual.abs().amax(-1)

    def newton(self, at: Point) -> tuple[Tensor, Tensor]:
        """dw (B, N), and for which systems (B,) it is known: the step that solves the linearised conditions, which are a
        complementarity problem again. It is solved by guessing what is held at its bound, and correcting the guess by the
        solution, a few times.

        Source: Hintermüller, Ito and Kunisch, The primal-dual active set strategy as a semismooth Newton method, SIAM J. Optim. 13
        (2002).
        """
        n = self.n
        kappa = torch.cat([1 / self.unit[:, :n], 1 / self.weights], -1)
        slack = torch.finfo(at.w.dtype).eps ** LOOSE
        loose = torch.cat([torch.zeros_like(kappa[:, :n]), -slack * self.signs / self.weights], -1)
        K: Kkt = at.K.plus(loose)
        size = K.largest(at.w.shape[-1])
        size = torch.where(size > 0, size, 1)
        below, above, fixed = self.lower - at.w, self.upper - at.w, self.lower == self.upper
        down, up = (at.F > -kappa * below) | fixed, at.F < -kappa * above
        for _ in range(PASSES):
            held = down | up
            b = torch.where(down, below, torch.where(up, above, -at.F / size))
            # Elimination may have rounded what is held: a multiplier of 1e-16 is one that holds.
            dw = torch.where(held, b, K.solved(held, size, b))
            # Of what is held the residual may have the wrong sign, of what is free the place.
            G = torch.where(held, at.F + K.times(dw), 0)
            down_next = (kappa * torch.where(down, 0, dw - below) < G) | fixed
            up_next = (kappa * torch.where(up, 0, dw - above) > G) & ~fixed
            settled = ((down_next == down) & (up_next == up)).all(-1) & dw.isfinite().all(-1)
            if finished(settled):
                break
            down, up = down_next, up_next
        return dw, settled & self._meets(at, dw, loose)

    def _meets(self, at: Point, dw: Tensor, loose: Tensor) -> Tensor:
        """Whether the constraints are met by a step, or nearly, (B,): what makes the step unique lets those pass that none meets."""
        n, unit = self.n, self.unit[:, self.n :]
        missed = (loose * dw)[:, n:].abs() * unit
        size = at.w[:, :n].abs().amax(-1).maximum(dw[:, :n].abs().amax(-1)).unsqueeze(-1)
        met = torch.finfo(size.dtype).eps ** MET * size
        return (missed <= HALF * at.F[:, n:].abs() * unit + met).all(-1)


def start(at: Point, lower: Tensor, upper: Tensor, n: int, first: float) -> Lagrangian:
    """That at the start, with penalties of ``first`` times the curvature of the objective, in the unit of each constraint."""
    z, F = at.w[:, :n], at.F
    largest = at.K.largest(n)
    rows = largest[:, n:]
    scale = 1 / torch.where((rows > 0) & rows.isfinite(), rows, 1)
    bend = largest[:, :n].amax(-1).maximum(F[:, :n].abs().amax(-1) / (1 + measured(z)))
    penalty = first * torch.where((bend > 0) & bend.isfinite(), bend, 1).unsqueeze(-1)
    unit = torch.cat([(1 / penalty).expand_as(z), scale], -1)
    return Lagrangian(lower, upper, at.w[:, n:], penalty * scale.square(), unit)
