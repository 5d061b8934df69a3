"""How far to go along a step: backtracking until the residual has become smaller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.norms import rms
from torchimplicit.parameters import check_count
from torchimplicit.solvers.equations import Equations


class SearchState(NamedTuple):
    """What a line search remembers.

    norms : those of the last residuals, the newest first, (B, memory).
    floor : a residual that is rounding error against that of the start, (B,).
    lost : the systems along whose step nothing better was found, (B,). They stay where they are, at no further cost.
    """

    norms: Tensor
    floor: Tensor
    lost: Tensor


@dataclass(frozen=True)
class Backtracking:
    """z + t s with the first of t = 1, t₁, t₂, ... for which ‖g(z + t s)‖ ≤ (1 − 10⁻⁴ t) · the largest of the last ``memory``
    norms of g.

    With ``memory`` = 1 the norm falls at every step (Armijo's rule); with more it may rise for a while, which lets Newton's
    method through narrow valleys. tₖ₊₁ minimises the parabola through what is known of ‖g‖² along s, between tₖ/10 and tₖ/2.
    A trial point where g is not finite shortens the step of its system; one where g raises shortens those of the whole batch.
    The first trial is the full step: where that is good the search costs nothing.
    Sources: Kelley, Iterative Methods for Linear and Nonlinear Equations (1995), section 8.3; Grippo, Lampariello and Lucidi,
    A nonmonotone line search technique for Newton's method, SIAM J. Numer. Anal. 23 (1986).
    """

    memory: int = 1
    decrease: ClassVar[float] = 1e-4
    shortest: ClassVar[float] = 0.1
    longest: ClassVar[float] = 0.5
    trials: ClassVar[int] = 20

    def __post_init__(self) -> None:
        check_count("Backtracking: memory", self.memory)

    def start(self, r: Tensor) -> SearchState:
        """The memory at the start, from the residual there."""
        norm = rms(r.detach())
        floor = torch.finfo(norm.dtype).eps ** 0.75 * norm
        return SearchState(norm.unsqueeze(-1).repeat(1, self.memory), floor, torch.zeros_like(norm, dtype=torch.bool))

    def along(
        self, equations: Equations, z: Tensor, s: Tensor, state: SearchState
    ) -> tuple[Tensor, Jacobian, SearchState]:
        """The next z, g linearised there, and the next state, from z and the step s of a Newton method."""
        norms, floor, lost = state
        norm, highest = norms[:, 0], norms.amax(-1)
        step = rms(s.detach())
        # There is nothing to shorten in a step that is not finite, or is rounding error against z.
        settled = ~lost & (~step.isfinite() | (step <= torch.finfo(step.dtype).eps ** 0.5 * rms(z.detach())))
        reached = z + s
        z_new = torch.where(lost.unsqueeze(-1), z, reached)
        settled = settled | lost
        t = torch.ones_like(norm)
        for _ in range(self.trials):
            jacobian = equations.attempt(equations.jacobian, z_new)
            norm_new = torch.full_like(norm, torch.inf) if jacobian is None else rms(jacobian.value.detach())
            accepted = settled | (norm_new <= ((1 - self.decrease * t) * highest).maximum(floor))
            if jacobian is not None and finished(accepted):
                break
            if jacobian is not None:
                settled = accepted
            t = torch.where(settled, t, self._shorter(t, norm_new / norm))
            z_new = torch.where(settled.unsqueeze(-1), z_new, z + t.unsqueeze(-1) * s)
        else:
            lost = lost | ~settled
            z_new = torch.where(settled.unsqueeze(-1), z_new, z)
            jacobian = equations.jacobian(z_new)
        norms = torch.cat([rms(jacobian.value.detach()).unsqueeze(-1), norms[:, :-1]], dim=-1)
        return z_new, jacobian, SearchState(norms, floor, lost)

    def _shorter(self, t: Tensor, growth: Tensor) -> Tensor:
        """The minimum of the parabola with value 1 and slope −2 at 0, and value growth² at t; safeguarded."""
        best = t * t / (growth.square() + 2 * t - 1)
        return best.nan_to_num(nan=0.0).clamp(self.shortest * t, self.longest * t)
