"""Newton's method for minima within bounds, by projection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished, occurs
from torchimplicit.condition import between
from torchimplicit.graph.loop import settle
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.masked import Masked
from torchimplicit.linear.vectors import times
from torchimplicit.norms import measured, rounding
from torchimplicit.solvers.descent import check_objective, dot
from torchimplicit.solvers.equations import Equations, Estimate
from torchimplicit.solvers.trial import Taken
from torchimplicit.solvers.trust_region import Downhill, Objective, Seen, by_factors, steihaug

SUFFICIENT = 1e-4  # the part of the decrease that the slope promises
NEGLIGIBLE = 1e-3  # damping, over ‖∇φ‖ / ‖s‖, that is given up
LOOSEST = 0.1  # what conjugate gradients leave of the gradient
CLOSE = 1e-4  # the same, preconditioned by factors
FACES = (
    8  # of the box, at most, in one step: of the unknowns that go to their bounds, those that the last step took there
)

# A step, the scale of its damping, and the damping of one that comes nearer.
Plan = tuple[Tensor, Tensor, Tensor]


class ProjectedState(NamedTuple):
    """What the next step needs: at z the objective, its gradient and Hessian (or how its products are formed); the damping λ, (B,);
    the bounds; which unknowns are held, and where the undamped step leads; (B, n) each."""

    value: Tensor
    gradient: Tensor
    hessian: Any
    damping: Tensor
    lower: Tensor
    upper: Tensor
    held: Tensor
    ahead: Tensor


@dataclass(frozen=True)
class ProjectedNewton(Downhill[Plan]):
    """z ← P(z + d), P the projection on the bounds, d = −(H + λI)⁻¹∇φ in the free unknowns; one evaluation a step.

    An unknown is held when it lies at a bound, or nearer to it than a part of its own last step, and ∂φ/∂zᵢ presses it there: it
    goes to the bound, as does what the step would take beyond, and the Newton system of the others knows where they go. A Hessian of
    those that is not positive definite takes its eigenvalues' absolute values. A step that does not lower φ as promised, or leads to
    NaN or Inf, is refused, in its own system only; then λ, 0 at first, grows: d turns to the gradient, and a short step along that
    descends whatever is projected, which one along Newton's direction need not where H is ill-conditioned. λ falls with every step
    that is taken.
    With ``max_inner`` nothing of size n² is formed: d comes from conjugate gradients, up to a tenth of the gradient, or, of a sparse H,
    with factors of the part of the free unknowns as their preconditioner.
    Source: Bertsekas, Projected Newton methods for optimization problems with simple constraints, SIAM J. Control Optim. 20 (1982),
    eq. 32 (what is held); the damping is Levenberg's.
    """

    nearest: float = 1e-3  # of its last undamped step: an unknown this near to its bound may be held
    max_inner: int | None = None  # steps of conjugate gradients for a Newton step; None: dense Hessians, factorised
    max_steps: ClassVar[int] = 500
    patience: ClassVar[int] = 60
    in_graph: ClassVar[bool] = True

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, ProjectedState]:
        check_objective(equations, "ProjectedNewton")
        lower, upper = equations.bounds(z)
        value, jacobian = equations.objective_and_jacobian(z)
        nothing = torch.zeros_like(z, dtype=torch.bool)
        state = ProjectedState(
            *(value, jacobian.value, self._model(jacobian), torch.zeros_like(value), lower, upper, nothing, z)
        )
        return between(state.gradient, z, lower, upper), self._look_ahead(z, state, torch.zeros_like(z))

    def propose(
        self, equations: Equations, z: Tensor, r: Tensor, state: ProjectedState
    ) -> tuple[Tensor, Plan, ProjectedState]:
        damping = state.damping
        at = state.ahead if finished(damping == 0) else self._to(z, state, damping)
        s = at - z
        length = measured(s)
        scale = measured(torch.where(state.held, 0, state.gradient)) / torch.where(length > 0, length, 1)
        scale = torch.where((scale > 0) & scale.isfinite(), scale, 1)
        return at, (s, scale, torch.where(damping > 0, 10 * damping, scale)), state

    def nearer(self, plan: Plan, state: ProjectedState) -> ProjectedState:
        return state._replace(damping=plan[-1])

    def judge(self, trial: Seen[Plan], state: ProjectedState) -> tuple[Tensor, Objective, ProjectedState]:
        (s, scale, more), (value_new, jacobian) = trial.plan, trial.there
        promised = -dot(state.gradient, s)
        decrease = state.value - value_new
        hidden = decrease.abs() <= rounding(state.value)
        decrease = torch.where(hidden, -dot(state.gradient + jacobian.value, s) / 2, decrease)
        downhill = (promised > 0) & (decrease >= SUFFICIENT * promised)
        still = (trial.r == 0).all(-1)  # a step to where z is already: it has a derivative
        accepted = (downhill | still) & jacobian.value.isfinite().all(-1)
        less = torch.where(state.damping > NEGLIGIBLE * scale, state.damping / 10, 0)
        return accepted, trial.there, state._replace(damping=torch.where(accepted, less, more))

    def arrive(
        self, z: Tensor, taken: Taken, trial: Seen[Plan], found: Objective, state: ProjectedState
    ) -> tuple[Tensor, ProjectedState]:
        value, jacobian = found
        near = self.nearest * (state.ahead - trial.z).detach().abs()
        hessian = self._chosen(taken, jacobian, state.hessian, trial.equations, z)
        state = state._replace(value=taken(value, state.value), gradient=taken(jacobian.value, state.gradient))
        r = between(state.gradient, z, state.lower, state.upper)
        return r, self._look_ahead(z, state._replace(hessian=hessian), near)

    def estimate(self, z: Tensor, r: Tensor, state: ProjectedState) -> Estimate:
        """The undamped step; infinite where it leads to a bound, however near, for the derivative of what is held there is another."""
        ahead, z = state.ahead.detach(), z.detach()
        arrives = (ahead != z) & ((ahead == state.lower) | (ahead == state.upper))
        return Estimate(torch.where(arrives, torch.inf, ahead - z), 0.0)

    def _look_ahead(self, z: Tensor, state: ProjectedState, near: Tensor) -> ProjectedState:
        """The state with what is held at z, of what lies so near to its bound, and where the step from z leads."""
        gradient = state.gradient
        held = ((z <= state.lower + near) & (gradient > 0)) | ((z >= state.upper - near) & (gradient < 0))
        state = state._replace(held=held)
        return state._replace(ahead=self._to(z, state, torch.zeros_like(state.damping)))

    def _to(self, z: Tensor, state: ProjectedState, damping: Tensor) -> Tensor:
        """Where the step from z leads. What is held comes to lie exactly at its own bound; what the step of the others would take
        beyond its bound goes there too, and the rest takes the step that follows: where unknowns act on each other, that of all of
        them, cut off at the bounds, can lead uphill however near they are."""
        start = torch.where(state.held, torch.where(state.gradient > 0, state.lower, state.upper), z)
        nothing = torch.zeros_like(damping, dtype=torch.bool)
        hessian = state.hessian
        outer, dense = (None, [hessian]) if self.max_inner is None else (hessian.operands, [])
        others = [state.gradient, state.lower, state.upper, z, damping, *dense]

        def body(
            to: tuple[Tensor, ...],
            gradient: Tensor,
            lower: Tensor,
            upper: Tensor,
            z: Tensor,
            damping: Tensor,
            *dense: Tensor,
        ) -> tuple[Tensor, ...]:
            at, held, _ = to
            H: Any = dense[0] if dense else hessian
            rest = gradient
            if occurs(held):
                s = torch.where(held, at - z, 0)
                rest = rest + (times(H, s) if dense else H.rmatvec(s))
            free = z + self._newton(H, rest, held, z, damping)
            inside = torch.minimum(torch.maximum(free, lower), upper)
            crosses = ~held & (inside != free)
            return torch.where(held, at, inside), held | crosses, ~crosses.any(-1)

        return settle(body, (start, state.held, nothing), FACES, others, outer)[0]

    def _model(self, hessian: Jacobian) -> Any:
        return hessian.to_dense() if self.max_inner is None else hessian

    def _chosen(self, taken: Taken, new: Jacobian, old: Any, equations: Equations, z: Tensor) -> Any:
        """The Hessian at z, where some systems have moved and others have not."""
        if taken.everywhere or self.max_inner is None:
            return self._model(new) if taken.everywhere else taken(new.to_dense(), old)
        return equations.objective_and_jacobian(z)[1]

    def _newton(self, hessian: Any, gradient: Tensor, held: Tensor, z: Tensor, damping: Tensor) -> Tensor:
        """The Newton step of the free unknowns, 0 for the held ones."""
        if self.max_inner is None:
            return newton_direction(hessian, gradient, held, damping)
        r = torch.where(held, 0, gradient)
        infinite, one = torch.full_like(damping, torch.inf), torch.ones_like(damping)
        free = Masked(hessian, held, one, damping.unsqueeze(-1).expand_as(r))
        newton = by_factors(free, r, infinite, CLOSE * one, self.max_inner)
        if newton is not None:
            return newton[0]
        eta = LOOSEST * one

        def product(p: Tensor, held: Tensor, damping: Tensor) -> Tensor:
            return torch.where(held, 0, hessian.rmatvec(p) + damping.unsqueeze(-1) * p)

        return steihaug(product, r, infinite, eta, z, self.max_inner, hessian.operands, (held, damping))[0]

    def restart(self, equations: Equations, z: Tensor, memory: Tensor) -> tuple[Tensor, ProjectedState]:
        """The residual and the state at z, with the damping that was reached."""
        r, state = self.init(equations, z)
        return r, state._replace(damping=memory)

    def remembered(self, state: ProjectedState) -> Tensor:
        """What a restart needs beside z."""
        return state.damping

    def merit(self, state: ProjectedState) -> Tensor:
        """The objective at z, (B,)."""
        return state.value


def newton_direction(hessian: Tensor, gradient: Tensor, held: Tensor, damping: Tensor) -> Tensor:
    """The step −|H|⁻¹∇φ of the free unknowns, 0 for the held ones."""
    if not held.shape[-1]:
        return gradient
    eye = torch.eye(held.shape[-1], dtype=gradient.dtype, device=gradient.device)
    # So that no eigenvalue is small beside that of what is held.
    unit = hessian.detach().abs().amax((-2, -1), keepdim=True)
    unit = torch.where(unit > 0, unit, 1)
    H = torch.where(held.unsqueeze(-1) | held.unsqueeze(-2), unit * eye, hessian + damping[:, None, None] * eye)
    r = torch.where(held, 0, gradient)
    L, info = torch.linalg.cholesky_ex(H)
    d = -torch.cholesky_solve(r.unsqueeze(-1), L).squeeze(-1)
    definite = (info == 0) & d.isfinite().all(-1)
    if finished(definite):
        return d
    with torch.no_grad():
        finite = H.isfinite().flatten(1).all(-1)[:, None, None]
        w, Q = torch.linalg.eigh(torch.where(finite, H, eye))
        size = w.abs()
        floor = torch.finfo(w.dtype).eps ** 0.5 * size.amax(-1, keepdim=True)
        other = -(Q @ ((Q.mT @ r.unsqueeze(-1)) / size.maximum(floor).unsqueeze(-1))).squeeze(-1)
    return torch.where(definite.unsqueeze(-1), d, other)
