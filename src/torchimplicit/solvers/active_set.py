"""Newton's method for complementarity problems, with the unknowns that are held at a bound as equations of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.linear import LU
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.large import Large
from torchimplicit.linear.masked import Masked
from torchimplicit.linear.vectors import unpatterned
from torchimplicit.norms import rms
from torchimplicit.parameters import check_count
from torchimplicit.solvers.equations import Equations, Estimate, growth
from torchimplicit.solvers.method import Method

RTOL = 1e-6  # of the linear systems: what they leave may not decide who is held


class ActiveSetState(NamedTuple):
    """F linearised at z; the bounds, (B, n); how much z changes F, (B,); and where the next step leads, (B, n)."""

    jacobian: Jacobian
    lower: Tensor
    upper: Tensor
    unit: Tensor
    ahead: Tensor


@dataclass(frozen=True)
class ActiveSet(Method):
    """z ← z + s. What is held by a bound goes there, and the others solve F(z) + J s = 0 in their own rows.

    An unknown is held where z − c F lies at its bound or beyond, so that those that are held wrongly go free, and as many others are
    held, in one step: that of Newton's method for z = P(z − c F), with the projection P. The unit c, ‖v‖ / ‖J v‖ for some v at the
    start, decides in the first step only. Where F is affine with an M-matrix, as in obstacle problems, no start is too far, and the
    number of steps hardly grows with that of unknowns. With ``max_inner`` nothing of size n² is formed.
    Source: Hintermüller, Ito and Kunisch, The primal-dual active set strategy as a semismooth Newton method, SIAM J. Optim. 13 (2003).
    """

    max_inner: int | None = None  # steps of an iterative solver for a Newton step; None: dense Jacobians, factorised
    max_steps: ClassVar[int] = 200
    patience: ClassVar[int] = 30

    def __post_init__(self) -> None:
        if self.max_inner is not None:
            check_count("ActiveSet: max_inner", self.max_inner)

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, Any]:
        if not equations.kind.bounded:
            raise TypeError(
                f"{type(self).__name__} is for unknowns with bounds, and this is a {equations.kind.name} without."
            )
        lower, upper = equations.bounds(z)
        jacobian = equations.jacobian_of_gradient(z)
        with torch.no_grad():
            v = unpatterned(z)
            unit = growth(rms(jacobian.matvec(v)), rms(v))
            unit = torch.where((unit > 0) & unit.isfinite(), unit, 1)
        return self._at(equations, z, jacobian, ActiveSetState(jacobian, lower, upper, unit, z))

    def step(self, equations: Equations, z: Tensor, r: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        z = state.ahead
        return z, *self._at(equations, z, equations.jacobian_of_gradient(z), state)

    def _at(
        self, equations: Equations, z: Tensor, jacobian: Jacobian, state: ActiveSetState
    ) -> tuple[Tensor, ActiveSetState]:
        """The residual at z, and the state with what is held there."""
        _, lower, upper, unit, _ = state
        s = self.completed(jacobian, *self.held(jacobian, z, state), unit)
        r = equations.kind.of_gradient(jacobian.value, z, lower, upper)
        return r, ActiveSetState(jacobian, lower, upper, unit, z + s)

    def held(self, jacobian: Jacobian, z: Tensor, state: ActiveSetState) -> tuple[Tensor, Tensor]:
        """What is held at z, and how far it is to its bounds, else 0: (B, n) each."""
        _, lower, upper, unit, _ = state
        with torch.no_grad():
            towards = z - jacobian.value / unit.unsqueeze(-1)
            below, above = towards < lower, towards > upper
        return below | above, torch.where(below, lower - z, torch.where(above, upper - z, 0))

    def completed(
        self,
        jacobian: Jacobian,
        held: Tensor,
        s: Tensor,
        unit: Tensor,
        stiffness: Tensor | None = None,
        push: Tensor | None = None,
    ) -> Tensor:
        """The step s of what is held, and for the others that with (J + stiffness) s = push − F."""
        rest = jacobian.value + jacobian.matvec(s)
        rest = torch.where(held, 0, rest if push is None else rest - push)
        return torch.where(held, s, -self._solved(Masked(jacobian, held, unit, stiffness), rest))

    def _solved(self, matrix: Masked, b: Tensor) -> Tensor:
        if self.max_inner is None:
            return LU().factorize(matrix).solve(b)
        return Large().factorize(matrix).iterate(b, rtol=RTOL, max_steps=self.max_inner).x

    def estimate(self, z: Tensor, r: Tensor, state: Any) -> Estimate:
        """The next step, which is Newton's."""
        return Estimate(state.ahead.detach() - z.detach(), 0.0)

    def restart(self, equations: Equations, z: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """The residual and the state at z."""
        jacobian = equations.jacobian_of_gradient(z)
        return self._at(equations, z, jacobian, ActiveSetState(jacobian, memory[0], memory[1], memory[2], z))

    def remembered(self, state: Any) -> Any:
        """What a restart needs beside z: bounds and the unit."""
        return state.lower, state.upper, state.unit
