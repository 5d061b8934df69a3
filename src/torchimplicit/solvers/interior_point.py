"""An interior point method for complementarity problems, which ends in the steps of an active set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.large import Large
from torchimplicit.linear.masked import Masked
from torchimplicit.norms import rms
from torchimplicit.solvers.active_set import ActiveSet, ActiveSetState
from torchimplicit.solvers.equations import Equations, Estimate

CENTRED = 0.1  # part of a·w that a step aims at
SHORT_OF = 0.995  # of the way to where the first a or w would vanish
ENDS = 1e-9  # part of the a·w at the start with which it is clear who is held
INSIDE = 0.1  # of the size of z and its bounds: distance of the start from them


class Interior(NamedTuple):
    """The distances a of z from its bounds and the forces w, (B, n) each, of the lower and the upper ones; what a·w is on average, and
    what it was at the start, (B,), 0 before the first step."""

    lower: tuple[Tensor, Tensor]
    upper: tuple[Tensor, Tensor]
    mean: Tensor
    first: Tensor

    @property
    def goes_on(self) -> Tensor:
        """Whether a system is still on its way along the path, (B, 1)."""
        return (self.mean > ENDS * self.first).unsqueeze(-1)


class InteriorPointState(NamedTuple):
    """What the steps of an active set need, and the point on the path; where the next step leads, and how it changes the forces."""

    active: ActiveSetState
    interior: Interior
    forces: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class InteriorPoint(ActiveSet):
    """F(z) = w − v, with forces w, v > 0 of the lower and upper bounds, and a·w = μ, b·v = μ for the distances a, b from them, with
    μ → 0 along the way: one system with J + w/a + v/b a step, symmetric where J is. From where it is clear who is held, the steps are
    those of :class:`ActiveSet`; one of these shows at the start whether that is a solution already. For monotone F; the number of
    steps hardly depends on that of unknowns.
    Source: Wright, Primal-Dual Interior-Point Methods (1997), chapters 6 and 8 (monotone complementarity problems).
    """

    max_steps: ClassVar[int] = 200
    patience: ClassVar[int] = 60

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, Any]:
        r, active = super().init(equations, z)
        none = torch.zeros_like(z)
        return r, InteriorPointState(
            active, Interior((none, none), (none, none), r[:, 0] * 0, r[:, 0] * 0), (none, none)
        )

    def step(self, equations: Equations, z: Tensor, r: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        active, interior, (dw, dv) = state
        (a, w), (b, v) = interior.lower, interior.upper
        first, inside = (interior.first == 0).unsqueeze(-1), interior.goes_on
        s = (active.ahead - z).detach()
        length = SHORT_OF * torch.stack([_longest(x, d) for x, d in ((a, s), (b, -s), (w, dw), (v, dv))]).amin(0)
        length = torch.where(inside, length.clamp(max=1).unsqueeze(-1), 1)
        z = torch.where(first, _between(z, active.lower, active.upper), z + length * (active.ahead - z))
        jacobian = equations.jacobian_of_gradient(z)
        a, b = (z - active.lower).detach(), (active.upper - z).detach()
        count = (a.isfinite().sum(-1) + b.isfinite().sum(-1)).clamp(min=1)
        begins = (_known(a) + _known(b)) * jacobian.value.detach().abs()
        begins = torch.where(begins > 0, begins, active.unit.unsqueeze(-1) * _known(a).minimum(_known(b)).square())
        begins = (begins.sum(-1) / count).clamp(min=torch.finfo(z.dtype).tiny)
        w = torch.where(first, begins.unsqueeze(-1) / a, w + length * dw)
        v = torch.where(first, begins.unsqueeze(-1) / b, v + length * dv)
        mean = (_known(a * w) + _known(b * v)).sum(-1) / count
        mean = torch.where((first | inside).squeeze(-1), mean, 0)
        interior = Interior((a, w), (b, v), mean, torch.where(first.squeeze(-1), begins, interior.first))
        return z, *self._ahead(equations, z, jacobian, active, interior)

    def _ahead(
        self, equations: Equations, z: Tensor, jacobian: Jacobian, active: ActiveSetState, interior: Interior
    ) -> tuple[Tensor, InteriorPointState]:
        """The residual at z, and the state with the next step."""
        (a, w), (b, v) = interior.lower, interior.upper
        inside = interior.goes_on
        held, s = self.held(jacobian, z, active)
        fixed = active.lower >= active.upper
        held = torch.where(inside, fixed, held)
        s = torch.where(held, s, 0)
        aim = CENTRED * interior.mean.unsqueeze(-1)
        stiffness = torch.where(inside & ~held, w / a + v / b, 0)
        push = torch.where(inside, aim / a - aim / b, 0)
        s = self.completed(jacobian, held, s, active.unit, stiffness, push)
        dw, dv = aim / a - w - w / a * s.detach(), aim / b - v + v / b * s.detach()
        r = equations.kind.of_gradient(jacobian.value, z, active.lower, active.upper)
        return r, InteriorPointState(active._replace(jacobian=jacobian, ahead=z + s), interior, (dw, dv))

    def _solved(self, matrix: Masked, b: Tensor) -> Tensor:
        if self.max_inner is None:
            return super()._solved(matrix, b)
        large = Large(trial=1, patience=1)  # the matrices have little in common
        return large.factorize(matrix).iterate(b, rtol=1e-6, max_steps=self.max_inner).x

    def estimate(self, z: Tensor, r: Tensor, state: Any) -> Estimate:
        """The next step, from where it is Newton's."""
        s = state.active.ahead.detach() - z.detach()
        return Estimate(torch.where(state.interior.goes_on, torch.inf, s), 0.0)

    def restart(self, equations: Equations, z: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """The residual and the state at z."""
        fixed, interior = memory
        jacobian = equations.jacobian_of_gradient(z)
        return self._ahead(equations, z, jacobian, ActiveSetState(jacobian, fixed[0], fixed[1], fixed[2], z), interior)

    def remembered(self, state: Any) -> Any:
        """What a restart needs beside z."""
        return super().remembered(state.active), state.interior


def _between(z: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The start, away from its bounds."""
    size = torch.stack([rms(_known(t)) for t in (z.detach(), lower, upper)]).sum(0)
    away = INSIDE * torch.where(size > 0, size, 1).unsqueeze(-1)
    away = away.minimum((upper - lower) / 4)
    return torch.minimum(torch.maximum(z, lower + away), upper - away)


def _known(x: Tensor) -> Tensor:
    """Numbers, with 0 for those of bounds that are none."""
    return torch.where(x.isfinite(), x, 0)


def _longest(x: Tensor, d: Tensor) -> Tensor:
    """The largest t with x + t d ≥ 0, (B,)."""
    return torch.where(d < 0, -x / d, torch.inf).amin(-1)
