"""Powell's dogleg: a trust region for Newton's method, and for Gauss–Newton on a fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.linear import QR
from torchimplicit.linear.dense import Dense
from torchimplicit.linear.solver import Left
from torchimplicit.linear.vectors import times
from torchimplicit.parameters import check_positive
from torchimplicit.solvers.equations import Equations
from torchimplicit.solvers.tangent import ACCEPTED, Found, OnTangent, Seen, Tangent, first_radius
from torchimplicit.solvers.trial import Taken

# A step, and its length in scaled unknowns.
Plan = tuple[Tensor, Tensor]


class DoglegState(NamedTuple):
    """What the method remembers.

    tangent : the linear model at z.
    scale : the largest norm that each column of J has had, (B, n).
    radius : of the trust region in scaled unknowns, (B,).
    good : how many good steps a system has made in a row, (B,).
    """

    tangent: Tangent
    scale: Tensor
    radius: Tensor
    good: Tensor


@dataclass(frozen=True)
class Dogleg(OnTangent[Plan]):
    """The step p that makes ‖r + J p‖ small on the path from z over the Cauchy point to the Newton point, as far as ‖D p‖ ≤ Δ.

    D holds the largest norms that the columns of J have had, so that the units of the unknowns do not matter. Δ starts at
    ``factor`` · ‖D z0‖, or at the length of the first Newton step where that is longer, and follows the ratio of the actual to
    the predicted decrease of ‖r‖²; a step with (nearly) none is not taken. The Newton point comes from a QR factorisation, never
    from JᵀJ. For a fit J has more rows than columns, and the Newton point is that of Gauss and Newton.
    Sources: Powell, A hybrid method for nonlinear equations (1970); Moré, Garbow and Hillstrom, User guide for MINPACK-1
    (1980), whose constants these are.
    """

    factor: float = 100.0
    max_steps: ClassVar[int] = 1000
    patience: ClassVar[int] = 20
    in_graph: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive("Dogleg: factor", self.factor)

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, DoglegState]:
        keep = not equations.kind.minimised  # for a fit J is not the condition's Jacobian
        r, tangent = self.start(equations, z, keep)
        scale = torch.where(tangent.columns > 0, tangent.columns, 1)
        radius = first_radius(tangent, scale, z, self.factor)
        return r, DoglegState(tangent, scale, radius, torch.zeros_like(radius, dtype=torch.int64))

    def propose(
        self, equations: Equations, z: Tensor, r: Tensor, state: DoglegState
    ) -> tuple[Tensor, Plan, DoglegState]:
        step = _dogleg(state.tangent, state.scale, state.radius)
        return z + step, (step, torch.linalg.vector_norm(state.scale * step.detach(), dim=-1)), state

    def nearer(self, plan: Plan, state: DoglegState) -> DoglegState:
        _, length = plan
        return state._replace(radius=state.radius.minimum(length) / 4)

    def judge(self, trial: Seen[Plan], state: DoglegState) -> tuple[Tensor, Found, DoglegState]:
        tangent, _, radius, good = state
        step, length = trial.plan
        new, actual = self.compared(trial, step, tangent)
        with torch.no_grad():
            scaled = step / tangent.norm.unsqueeze(-1)
            slope, bend = (tangent.gradient * scaled).sum(-1) / tangent.norm, times(tangent.R, scaled).square().sum(-1)
            ratio = actual / (-2 * slope - bend)
            taken, better = ratio >= ACCEPTED, ratio >= 0.1  # neither where NaN
            taken = taken | (trial.r == 0).all(-1)  # to where z is already: the step has a derivative
            good = torch.where(better, good + 1, 0)
            wider = torch.where((ratio >= 0.5) | (good > 1), radius.maximum(2 * length), radius)
            narrower = radius.minimum(length) / torch.where(taken, 2, 4)  # whole numbers have no dtype of their own
            radius = torch.where((ratio - 1).abs() <= 0.1, 2 * length, torch.where(better, wider, narrower))
        return taken, new, state._replace(radius=radius, good=good)

    def moved(self, tangent: Tangent, taken: Taken, state: DoglegState) -> DoglegState:
        return state._replace(tangent=tangent, scale=state.scale.maximum(tangent.columns))

    def inverse(self, state: DoglegState) -> tuple[Tensor, ...]:
        """The tensors of the factors of J at the root, to serve (transposed) in the backward."""
        jacobian = state.tangent.jacobian
        return () if jacobian is None else QR().factorize(Dense(jacobian)).tensors

    def from_tensors(self, tensors: Sequence[Tensor]) -> Left:
        """The inverse again."""
        return QR.from_tensors(tensors)


def _dogleg(tangent: Tangent, scale: Tensor, radius: Tensor) -> Tensor:
    """The step a · (scaled gradient) + b · (Newton's step). The recorded gradient takes a and b as given."""
    newton = -tangent.newton
    usable = newton.detach().isfinite().all(-1, keepdim=True)
    newton = torch.where(usable, newton, 0)
    gradient = tangent.gradient / scale
    with torch.no_grad():
        size = torch.linalg.vector_norm(gradient, dim=-1)
        unit = gradient / torch.where(size > 0, size, 1).unsqueeze(-1)
        slope = torch.linalg.vector_norm(times(tangent.R, unit / scale), dim=-1)
        cauchy = (size / slope.square()).minimum(radius).nan_to_num(nan=0.0)  # how far down the gradient
        length = torch.linalg.vector_norm(scale * newton, dim=-1)
        # Between the Cauchy point c and the Newton point c + d: |c + τ d| = Δ.
        c = -cauchy.unsqueeze(-1) * unit
        d = scale * newton - c
        dd, cd = d.square().sum(-1), (c * d).sum(-1)
        room = (radius - cauchy) * (radius + cauchy)
        root = (cd.square() + dd * room).clamp(min=0).sqrt()
        tau = torch.where(cd > 0, room / (cd + root), (root - cd) / dd).nan_to_num(nan=0.0).clamp(0, 1)
        inside = usable.squeeze(-1) & (length <= radius)
        tau = torch.where(inside, 1, torch.where(usable.squeeze(-1), tau, 0))
        down = (1 - tau) * cauchy / torch.where(size > 0, size, 1)
    return tau.unsqueeze(-1) * newton - down.unsqueeze(-1) * gradient / scale
