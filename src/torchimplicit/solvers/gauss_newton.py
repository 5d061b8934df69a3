"""The Gauss–Newton method with halved steps, for fits and for square systems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.solvers.equations import Equations
from torchimplicit.solvers.tangent import ACCEPTED, Found, OnTangent, Seen, Tangent


class GaussNewtonState(NamedTuple):
    """The linear model at z, and the fraction of its step that is tried next, (B,)."""

    tangent: Tangent
    fraction: Tensor


@dataclass(frozen=True)
class GaussNewton(OnTangent[Tensor]):
    """z ← z + t p, where p makes ‖r + J p‖ smallest, by a QR factorisation of J; t is halved until ‖r‖² falls by enough.

    One t is tried in each step of the loop. Where J has not full rank, p is the shortest of several, in units in which the columns
    of J have norm one. Fast on fits that are good or nearly linear; Levenberg–Marquardt is safer.
    Source: Dennis and Schnabel, Numerical Methods for Unconstrained Optimization and Nonlinear Equations (1983), section 10.2.
    """

    max_steps: ClassVar[int] = 500
    patience: ClassVar[int] = 30
    in_graph: ClassVar[bool] = True
    rowwise: ClassVar[bool] = True

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, GaussNewtonState]:
        r, tangent = self.start(equations, z)
        return r, GaussNewtonState(tangent, torch.ones_like(tangent.norm))

    def propose(
        self, equations: Equations, z: Tensor, r: Tensor, state: GaussNewtonState
    ) -> tuple[Tensor, Tensor, GaussNewtonState]:
        step = -state.fraction.unsqueeze(-1) * state.tangent.newton
        return z + step, step, state

    def nearer(self, plan: Tensor, state: GaussNewtonState) -> GaussNewtonState:
        return state._replace(fraction=state.fraction / 2)

    def judge(self, trial: Seen[Tensor], state: GaussNewtonState) -> tuple[Tensor, Found, GaussNewtonState]:
        tangent, step = state.tangent, trial.plan
        new, decrease = self.compared(trial, step, tangent)
        with torch.no_grad():
            slope = -2 * (tangent.gradient * step).sum(-1) / tangent.norm.square()
            taken = decrease >= ACCEPTED * slope  # not where NaN
            taken = taken | (trial.r == 0).all(-1)  # to where z is already: the step has a derivative
        return taken, new, state._replace(fraction=torch.where(taken, 1, state.fraction / 2))
