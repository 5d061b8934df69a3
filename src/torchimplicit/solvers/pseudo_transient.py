"""Pseudo-transient continuation: Newton's method damped as an implicit step in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished
from torchimplicit.linear.binding import bind
from torchimplicit.linear.dense import Dense
from torchimplicit.linear.jacobian import Damped, Jacobian
from torchimplicit.linear.lu import factor
from torchimplicit.linear.solver import Bound, LinearSolver
from torchimplicit.linear.vectors import unpatterned
from torchimplicit.norms import rms
from torchimplicit.parameters import check_positive
from torchimplicit.solvers.equations import Equations, Estimate
from torchimplicit.solvers.newton_krylov import check_iterative
from torchimplicit.solvers.trial import Taken, Trial, TrialMethod


class PseudoTransientState(NamedTuple):
    """g's Jacobian at z, by its entries or its products, 1/δ, (B,), and the last step that was taken, (B, n)."""

    jacobian: Dense | Jacobian
    rate: Tensor
    last: Tensor | None = None


@dataclass(frozen=True)
class PseudoTransient(TrialMethod[Tensor, Jacobian, Jacobian]):
    """(I/δ + J(z)) s = −g(z), z ← z + s: implicit Euler steps for dz/dt = −g(z) that lengthen as the residual falls.

    δ ← δ ‖g(z)‖ / ‖g(z + s)‖ (switched evolution relaxation), so that the method follows the flow from the start and ends as
    Newton's. It goes past local minima of ‖g‖ where the flow does, and finds roots that the flow is drawn to. A step to where
    g is not finite, or raises, or is a thousand times as large, is not taken, and δ becomes a quarter.
    δ starts at ``first``, in units in which the largest row of J(z0) has the sum one. A negative one follows the flow
    backwards, as that of −g: the sign of g, of no meaning to other methods, is the direction of time here.
    Source: Kelley and Keyes, Convergence analysis of pseudo-transient continuation, SIAM J. Numer. Anal. 35 (1998), eq. 1.4.

    With an iterative ``linear_solver``, such as :class:`torchimplicit.linear.Large`, J is known by its products and nothing of size
    n² is formed (δ starts in units of the largest entry of J v beside that of some v). It is the method for recurrences
    zₜ = f(zₜ₋₁, xₜ), all t at once, on which Newton's steps overflow: it damps them as if f were multiplied by δ / (1 + δ).
    """

    first: float = 10.0
    linear_solver: LinearSolver | None = None
    max_inner: ClassVar[int] = 200
    max_steps: ClassVar[int] = 200

    def __post_init__(self) -> None:
        check_positive("PseudoTransient: |first|", abs(self.first))
        if self.linear_solver is not None:
            check_iterative(self.linear_solver, "PseudoTransient")

    @property
    def patience(self) -> int:
        """Fewer where a step is a linear solve by products."""
        return 100 if self.linear_solver is None else 30

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, PseudoTransientState]:
        linearised = equations.jacobian(z)
        jacobian = self._held(linearised)
        if not z.shape[-1]:
            size = z.new_ones(z.shape[0])
        elif isinstance(jacobian, Dense):
            size = jacobian.A.detach().abs().sum(-1).amax(-1)
        else:
            v = unpatterned(z) - 1.5
            size = jacobian.rmatvec(v).detach().abs().amax(-1) / v.abs().amax(-1)
        return linearised.value, PseudoTransientState(jacobian, torch.where(size > 0, size, 1) / self.first)

    def propose(
        self, equations: Equations, z: Tensor, r: Tensor, state: PseudoTransientState
    ) -> tuple[Tensor, Tensor, PseudoTransientState]:
        if isinstance(state.jacobian, Dense):
            s = -_solved(state.jacobian.A + torch.diag_embed(state.rate.unsqueeze(-1).expand(z.shape)), r)
        else:
            if state.jacobian.memory is not None:
                state.jacobian.memory.doubt()  # far from a root J is soon another
            s = -self._bound(Damped(state.jacobian, state.rate)).iterate(r, rtol=LOOSE, max_steps=self.max_inner).x
        return z + s, s, state

    def look(self, equations: Equations, z: Tensor) -> Jacobian:
        return equations.jacobian(z)

    def nearer(self, plan: Tensor, state: PseudoTransientState) -> PseudoTransientState:
        return state._replace(rate=4 * state.rate)

    def judge(
        self, trial: Trial[Tensor, Jacobian], state: PseudoTransientState
    ) -> tuple[Tensor, Jacobian, PseudoTransientState]:
        norm, before = rms(trial.there.value.detach()), rms(trial.r.detach())
        taken = (norm + rms(trial.plan.detach())).isfinite() & ~(norm > WILD * before)
        rate = state.rate * torch.where(taken, norm / torch.where(before > 0, before, 1), 4)
        return taken, trial.there, state._replace(rate=rate)

    def arrive(
        self, z: Tensor, taken: Taken, trial: Trial[Tensor, Jacobian], found: Jacobian, state: PseudoTransientState
    ) -> tuple[Tensor, PseudoTransientState]:
        old, new = state.jacobian, self._held(found)
        if isinstance(old, Dense) and isinstance(new, Dense):
            new = Dense(taken(new.A, old.A))
        elif not taken.everywhere:
            new = trial.equations.jacobian(z)
        last = trial.plan if state.last is None else taken(trial.plan, state.last)
        return taken(found.value, trial.r), state._replace(jacobian=new, last=last)

    def estimate(self, z: Tensor, r: Tensor, state: PseudoTransientState) -> Estimate | None:
        """Newton's correction, infinite where it is not found; by products alone it is sought once the steps are short."""
        if isinstance(state.jacobian, Dense):
            return Estimate(_solved(state.jacobian.A, r), 0.0)
        if state.last is None:
            return None
        if finished(rms(state.last.detach()) > LONG * rms(z.detach())):
            return Estimate(state.last, 0.0)
        newton = self._bound(state.jacobian).iterate(r, rtol=LOOSE, max_steps=self.max_inner)
        return Estimate(torch.where(newton.converged.unsqueeze(-1), newton.x, torch.inf), 0.0)

    def _bound(self, jacobian: Jacobian) -> Bound:
        assert self.linear_solver is not None
        return bind(self.linear_solver, jacobian)

    def _held(self, linearised: Jacobian) -> Dense | Jacobian:
        return Dense(linearised.to_dense()) if self.linear_solver is None else linearised


WILD = 1e3  # times as large a residual as before: of a step to where nothing is like it was
LONG = 0.1  # of the size of z: of steps after which the next one is not the last
LOOSE = 1e-2  # how well the estimated error has to be known


def _solved(A: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.lu_solve(*factor(A), b.unsqueeze(-1)).squeeze(-1)
