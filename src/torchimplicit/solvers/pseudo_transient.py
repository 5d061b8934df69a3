"""Pseudo-transient continuation: Newton's method damped as an implicit step in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished
from torchimplicit.linear.lu import factor
from torchimplicit.norms import rms
from torchimplicit.parameters import check_positive
from torchimplicit.solvers.equations import Equations, Estimate
from torchimplicit.solvers.method import Method


class PseudoTransientState(NamedTuple):
    """g's Jacobian at z, (B, n, n), and 1/δ, (B,)."""

    jacobian: Tensor
    rate: Tensor


@dataclass(frozen=True)
class PseudoTransient(Method):
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
    in_graph: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_positive("PseudoTransient: |first|", abs(self.first))

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, PseudoTransientState]:
        linearised = equations.jacobian(z)
        jacobian = linearised.to_dense()
        size = jacobian.detach().abs().sum(-1).amax(-1) if z.shape[-1] else z.new_ones(z.shape[0])
        return linearised.value, PseudoTransientState(jacobian, torch.where(size > 0, size, 1) / self.first)

    def step(
        self, equations: Equations, z: Tensor, r: Tensor, state: PseudoTransientState
    ) -> tuple[Tensor, Tensor, PseudoTransientState]:
        jacobian, rate = state
        damped = jacobian + torch.diag_embed(rate.unsqueeze(-1).expand(z.shape))
        s = -torch.linalg.lu_solve(*factor(damped), r.unsqueeze(-1)).squeeze(-1)
        linearised = equations.attempt(equations.jacobian, z + s)
        if linearised is None:
            return z, r, PseudoTransientState(jacobian, 4 * rate)
        norm = rms(linearised.value.detach())
        taken = (norm + rms(s.detach())).isfinite()
        before = rms(r.detach())
        rate = rate * torch.where(taken, norm / torch.where(before > 0, before, 1), 4)
        if finished(~taken):
            return z, r, PseudoTransientState(jacobian, rate)
        rows = taken.unsqueeze(-1)
        jacobian = torch.where(rows.unsqueeze(-1), linearised.to_dense(), jacobian)
        z, r = torch.where(rows, z + s, z), torch.where(rows, linearised.value, r)
        return z, r, PseudoTransientState(jacobian, rate)

    def estimate(self, z: Tensor, r: Tensor, state: PseudoTransientState) -> Estimate:
        """Newton's correction."""
        return Estimate(torch.linalg.lu_solve(*factor(state.jacobian), r.unsqueeze(-1)).squeeze(-1), 0.0)
