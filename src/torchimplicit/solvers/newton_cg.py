"""Newton's method for minima, in a trust region, without Hessians: only their products with vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.norms import rms
from torchimplicit.parameters import check_count, check_positive
from torchimplicit.solvers.descent import check_minimised, dot
from torchimplicit.solvers.equations import Equations, Estimate
from torchimplicit.solvers.trial import Taken
from torchimplicit.solvers.trust_region import Downhill, Objective, Seen, by_factors, judge, nearer, steihaug

# A step, the decrease that the parabola predicts for it, and whether nothing bends it.
Plan = tuple[Tensor, Tensor, Tensor]


class NewtonCGMemory(NamedTuple):
    """The objective at z, the radius of the trust region, and the norm of the gradient at the start, each (B,); the last step that
    was taken times what it has left of the gradient, (B, n), infinite before; the last direction without curvature that was taken,
    (B, n), 0 before, and half of the slope there was along it, (B,)."""

    value: Tensor
    radius: Tensor
    start: Tensor
    correction: Tensor
    flat: Tensor
    slope: Tensor


class NewtonCGState(NamedTuple):
    """The Hessian at z as an operator, and what else the next step needs."""

    hessian: Jacobian
    memory: NewtonCGMemory


def _nothing(z: Tensor) -> tuple[Tensor, Tensor]:
    """No direction without curvature was met."""
    return torch.zeros_like(z), z.new_zeros(z.shape[0])


@dataclass(frozen=True)
class NewtonCG(Downhill[Plan]):
    """z ← z + s, s from conjugate gradients on H s = −∇φ, stopped where they leave the ball ‖s‖ ≤ Δ, at a direction of negative
    curvature (followed to the edge of the ball), or at ‖H s + ∇φ‖ ≤ η ‖∇φ‖. Of a sparse H factors are the preconditioner, as long as
    their step stays in the ball.

    η = √(‖∇φ‖ / ‖∇φ(z0)‖), not above ``loosest``: the convergence is superlinear. A step that does not lower φ as promised, or leads
    to NaN or Inf, is refused, in its own system only, and Δ falls. Nothing of size n² is formed.
    Source: Steihaug, The conjugate gradient method and trust regions in large scale optimization, SIAM J. Numer. Anal. 20 (1983);
    Nocedal and Wright, Numerical Optimization (2006), algorithm 7.2.
    """

    loosest: float = 0.1
    max_inner: int = 200
    max_steps: ClassVar[int] = 2000
    patience: ClassVar[int] = 30
    in_graph: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("NewtonCG: max_inner", self.max_inner)
        check_positive("NewtonCG: loosest", self.loosest)

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, NewtonCGState]:
        check_minimised(equations, "NewtonCG")
        value, hessian = equations.objective_and_jacobian(z)
        start = torch.linalg.vector_norm(hessian.value.detach(), dim=-1)
        memory = NewtonCGMemory(
            value, torch.full_like(value, torch.inf), start, torch.full_like(z, torch.inf), *_nothing(z)
        )
        return hessian.value, NewtonCGState(hessian, memory)

    def propose(
        self, equations: Equations, z: Tensor, r: Tensor, state: NewtonCGState
    ) -> tuple[Tensor, Plan, NewtonCGState]:
        hessian, memory = state
        eta = (torch.linalg.vector_norm(r.detach(), dim=-1) / memory.start).sqrt().clamp(max=self.loosest)
        newton = by_factors(hessian, r, memory.radius, eta, self.max_inner)
        if newton is not None:
            return z + newton[0], (*newton, torch.zeros_like(eta, dtype=torch.bool)), state
        inner = r, memory.radius, eta, z, self.max_inner, hessian.operands
        s, predicted, radius, flat = steihaug(hessian.rmatvec, *inner)
        return z + s, (s.detach(), predicted, flat), NewtonCGState(hessian, memory._replace(radius=radius))

    def nearer(self, plan: Plan, state: NewtonCGState) -> NewtonCGState:
        hessian, memory = state
        return NewtonCGState(hessian, memory._replace(radius=nearer(memory.radius, plan[0])))

    def judge(self, trial: Seen[Plan], state: NewtonCGState) -> tuple[Tensor, Objective, NewtonCGState]:
        (hessian, memory), (value, there), (s, predicted, _) = state, trial.there, trial.plan
        accepted, radius = judge((memory.value, value), (trial.r, there.value), s, predicted, memory.radius)
        return accepted, trial.there, NewtonCGState(hessian, memory._replace(radius=radius))

    def arrive(
        self, z: Tensor, taken: Taken, trial: Seen[Plan], found: Objective, state: NewtonCGState
    ) -> tuple[Tensor, NewtonCGState]:
        memory, (value, hessian), (s, _, flat) = state.memory, found, trial.plan
        ratio = rms(hessian.value.detach()) / rms(trial.r.detach())
        correction = taken(ratio.unsqueeze(-1) * s, memory.correction)
        along, slope = memory.flat, memory.slope
        if not finished(~flat):
            d = s / torch.linalg.vector_norm(s, dim=-1, keepdim=True)
            along = torch.where((flat & taken.rows).unsqueeze(-1), d, along)
            slope = torch.where(flat & taken.rows, dot(d, trial.r.detach()).abs() / 2, slope)
        value = taken(value, memory.value)
        memory = memory._replace(value=value, correction=correction, flat=along, slope=slope)
        hessian = hessian if taken.everywhere else trial.equations.jacobian(z)
        return hessian.value, NewtonCGState(hessian, memory)

    def estimate(self, z: Tensor, r: Tensor, state: NewtonCGState) -> Estimate:
        """The last step, as much smaller as the gradient has become; infinite as long as there is a slope that nothing bends: a z that
        runs off along it has no error, however long it is."""
        memory = state.memory
        sloping = dot(memory.flat, r.detach()).abs() > memory.slope
        return Estimate(torch.where(sloping.unsqueeze(-1), torch.inf, memory.correction), 0.0)

    def merit(self, state: NewtonCGState) -> Tensor:
        """The objective at z, (B,)."""
        return state.memory.value

    def restart(self, equations: Equations, z: Tensor, memory: NewtonCGMemory) -> tuple[Tensor, NewtonCGState]:
        """The residual and the state at z, with the radius that was reached."""
        hessian = equations.jacobian(z)
        return hessian.value, NewtonCGState(hessian, memory)

    def remembered(self, state: NewtonCGState) -> NewtonCGMemory:
        """What a restart needs beside z."""
        return state.memory
