"""The Gauss–Newton method with halved steps, for fits and for square systems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished
from torchimplicit.solvers.equations import Equations, Estimate
from torchimplicit.solvers.method import Method
from torchimplicit.solvers.tangent import ACCEPTED, Tangent, check_squares, compare, condition, estimate


class GaussNewtonState(NamedTuple):
    """The linear model at z, and the fraction of its step that is tried next, (B,)."""

    tangent: Tangent
    fraction: Tensor


@dataclass(frozen=True)
class GaussNewton(Method):
    """z ← z + t p, where p makes ‖r + J p‖ smallest, by a QR factorisation of J; t is halved until ‖r‖² falls by enough.

    One t is tried in each step of the loop. Where J has not full rank, p is the shortest of several, in units in which the columns
    of J have norm one. Fast on fits that are good or nearly linear; Levenberg–Marquardt is safer.
    Source: Dennis and Schnabel, Numerical Methods for Unconstrained Optimization and Nonlinear Equations (1983), section 10.2.
    """

    max_steps: ClassVar[int] = 500
    patience: ClassVar[int] = 30
    rowwise: ClassVar[bool] = True

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, GaussNewtonState]:
        check_squares(equations, "GaussNewton")
        linearised = equations.jacobian_of_squares(z)
        tangent = Tangent.of(linearised, z, not equations.kind.minimised)
        return condition(equations, tangent, linearised.value), GaussNewtonState(tangent, torch.ones_like(tangent.norm))

    def step(
        self, equations: Equations, z: Tensor, r: Tensor, state: GaussNewtonState
    ) -> tuple[Tensor, Tensor, GaussNewtonState]:
        tangent, fraction = state
        step = -fraction.unsqueeze(-1) * tangent.newton
        linearised = equations.jacobian_of_squares(z + step)
        new, decrease = compare(tangent, linearised, z, step, not equations.kind.minimised)
        with torch.no_grad():
            slope = -2 * (tangent.gradient * step).sum(-1) / tangent.norm.square()
            taken = decrease >= ACCEPTED * slope  # not where NaN
            taken = taken | (r == 0).all(-1)  # to where z is already: the step has a derivative
            fraction = torch.where(taken, 1, fraction / 2)
        if finished(~taken):
            return z, r, GaussNewtonState(tangent, fraction)
        rows = taken.unsqueeze(-1)
        z, tangent = torch.where(rows, z + step, z), new.where(taken, tangent)
        r = torch.where(rows, condition(equations, new, linearised.value), r)
        return z, r, GaussNewtonState(tangent, fraction)

    def merit(self, state: GaussNewtonState) -> Tensor:
        """Half of the sum of squares at z, (B,)."""
        return state.tangent.norm.square() / 2

    def estimate(self, z: Tensor, r: Tensor, state: GaussNewtonState) -> Estimate:
        """The step to the minimum of the model at z."""
        return estimate(state.tangent)
