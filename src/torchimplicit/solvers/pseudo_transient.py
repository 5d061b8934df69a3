"""Pseudo-transient continuation: Newton's method damped as an implicit step in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.lu import factor
from torchimplicit.norms import rms
from torchimplicit.parameters import check_positive
from torchimplicit.solvers.equations import Equations, Estimate
from torchimplicit.solvers.trial import Taken, Trial, TrialMethod


class PseudoTransientState(NamedTuple):
    """g's Jacobian at z, (B, n, n), and 1/δ, (B,)."""

    jacobian: Tensor
    rate: Tensor


@dataclass(frozen=True)
class PseudoTransient(TrialMethod[Tensor, Jacobian, Jacobian]):
    """(I/δ + J(z)) s = −g(z), z ← z + s: implicit Euler steps for dz/dt = −g(z) that lengthen as the residual falls.

    δ ← δ ‖g(z)‖ / ‖g(z + s)‖ (switched evolution relaxation), so that the method follows the flow from the start and ends as
    Newton's. It goes past local minima of ‖g‖ where the flow does, and finds roots that the flow is drawn to. A step to where
    g is not finite, or raises, is not taken, and δ becomes a quarter.
    δ starts at ``first``, in units in which the largest row of J(z0) has the sum one. A negative one follows the flow
    backwards, as that of −g: the sign of g, of no meaning to other methods, is the direction of time here.
    Source: Kelley and Keyes, Convergence analysis of pseudo-transient continuation, SIAM J. Numer. Anal. 35 (1998), eq. 1.4.
    """

    first: float = 10.0
    max_steps: ClassVar[int] = 200
    patience: ClassVar[int] = 100

    def __post_init__(self) -> None:
        check_positive("PseudoTransient: |first|", abs(self.first))

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, PseudoTransientState]:
        linearised = equations.jacobian(z)
        jacobian = linearised.to_dense()
        size = jacobian.detach().abs().sum(-1).amax(-1) if z.shape[-1] else z.new_ones(z.shape[0])
        return linearised.value, PseudoTransientState(jacobian, torch.where(size > 0, size, 1) / self.first)

    def propose(
        self, equations: Equations, z: Tensor, r: Tensor, state: PseudoTransientState
    ) -> tuple[Tensor, Tensor, PseudoTransientState]:
        damped = state.jacobian + torch.diag_embed(state.rate.unsqueeze(-1).expand(z.shape))
        s = -torch.linalg.lu_solve(*factor(damped), r.unsqueeze(-1)).squeeze(-1)
        return z + s, s, state

    def look(self, equations: Equations, z: Tensor) -> Jacobian:
        return equations.jacobian(z)

    def nearer(self, plan: Tensor, state: PseudoTransientState) -> PseudoTransientState:
        return state._replace(rate=4 * state.rate)

    def judge(
        self, trial: Trial[Tensor, Jacobian], state: PseudoTransientState
    ) -> tuple[Tensor, Jacobian, PseudoTransientState]:
        norm, before = rms(trial.there.value.detach()), rms(trial.r.detach())
        taken = (norm + rms(trial.plan.detach())).isfinite()
        rate = state.rate * torch.where(taken, norm / torch.where(before > 0, before, 1), 4)
        return taken, trial.there, state._replace(rate=rate)

    def arrive(
        self, z: Tensor, taken: Taken, trial: Trial[Tensor, Jacobian], found: Jacobian, state: PseudoTransientState
    ) -> tuple[Tensor, PseudoTransientState]:
        jacobian = taken(found.to_dense(), state.jacobian)
        return taken(found.value, trial.r), state._replace(jacobian=jacobian)

    def estimate(self, z: Tensor, r: Tensor, state: PseudoTransientState) -> Estimate:
        """Newton's correction."""
        return Estimate(torch.linalg.lu_solve(*factor(state.jacobian), r.unsqueeze(-1)).squeeze(-1), 0.0)
