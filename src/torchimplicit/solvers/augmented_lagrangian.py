"""Minima under constraints: Newton's method on the augmented Lagrangian, and on the optimality conditions near the solution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished
from torchimplicit.bounds import projected_gradient
from torchimplicit.norms import measured, rounding
from torchimplicit.solvers.descent import dot
from torchimplicit.solvers.equations import Equations, Estimate
from torchimplicit.solvers.lagrangian import Lagrangian, Point, start
from torchimplicit.solvers.method import Method
from torchimplicit.solvers.projected_newton import NEGLIGIBLE, SUFFICIENT
from torchimplicit.solvers.sparse_kkt import kkt_of
from torchimplicit.status import Status

FIRST = 10  # times the curvature of the objective: the first penalty
GROWTH = 10  # of the penalty, where the violation has not become a quarter
QUARTER = 0.25
CLOSE = 0.1  # a Newton step of so many times the size of z ends the search for the minimum of one augmented Lagrangian,
CLOSER = 0.1  # and so much less the next
HALVED = 0.5  # what a Newton step on the optimality conditions has to make of their residual
LARGEST = 1e12  # times the first: a penalty with which what is still violated cannot be met
BOUNDLESS = 1e8  # times the size of z: a multiplier, in z's unit, that stands for none
VIOLATED = 0.38  # eps to this power, of the size of z: a distance from the constraints that is no rounding error
STATIONARY = 0.5  # eps to this power, of the forces of the constraints and of the curvature: what may be left of ∇L
BEHIND = (
    100  # times Newton's correction of z: what is left of ∇L, in z's unit, of multipliers that are not yet those of z
)
FLIGHT = 100  # steps, each farther away than all before and lower, after which nothing stops z,
FARTHER = 10  # if they have led so many times as far away, and the residual is none the smaller


class Ahead(NamedTuple):
    """What lies ahead of a point.

    merit, gradient, hessian : of M, the last a :class:`torchimplicit.solvers.kkt.Curvature`.
    held : the unknowns that their bounds hold, (B, n).
    to : where the undamped step on M leads, (B, n).
    convex : whether M is, where z is free, (B,).
    newton, settled : Newton's step on the optimality conditions, (B, N), and whether it is known, (B,).
    """

    merit: Tensor
    gradient: Tensor
    hessian: Any
    held: Tensor
    to: Tensor
    convex: Tensor
    newton: Tensor
    settled: Tensor

    @property
    def known(self) -> Tensor:
        """Whether Newton's step leads to a minimum, as far as is seen from here."""
        return self.convex & self.settled


class Flight(NamedTuple):
    """Of steps each of which led farther away than all before, and lower: how many, and where they began, how far away, (B,), and with
    what residual."""

    steps: Tensor
    size: Tensor
    residual: Tensor


class LagrangianState(NamedTuple):
    """What the next step needs; (B,) each, but for the first four.

    near : a distance from its bound at which an unknown may be held, (B, n).
    damping : of the steps on M.
    close : the length of a step, beside ``size``, the largest |z| so far, with which M has been minimised.
    violation, reach : of the constraints, and ``size``, at the last change of M: a step that leads farther from them is refused, and
        the penalty grows.
    penalty : in parts of the first.
    fast : whether the next step is Newton's on the optimality conditions, which is to halve their residual.
    direct : whether it is to be tried as a step on M.
    flight : the steps that lead away.
    """

    at: Point
    model: Lagrangian
    ahead: Ahead
    near: Tensor
    damping: Tensor
    close: Tensor
    size: Tensor
    violation: Tensor
    reach: Tensor
    penalty: Tensor
    fast: Tensor
    direct: Tensor
    flight: Flight


@dataclass(frozen=True)
class AugmentedLagrangian(Method):
    """M(z) = φ + ½ρ Σ (c + ν/ρ)² + ½ρ Σ max(h + μ/ρ, 0)² is minimised by projected Newton steps until they are short; then ν and μ
    become ν + ρc and max(μ + ρh, 0), or the penalty ρ grows, where the violation has not fallen to a quarter. From there Newton steps
    on the optimality conditions of z, ν and μ together are tried, as long as each halves their residual and M is convex: these converge
    fast, and say which constraints hold. Matrices of all unknowns and multipliers are factorised: dense ones, or, where a pattern is
    known and their factors stay small, sparse ones, of which nothing of size n² is formed. More than 4,096 without that are refused.

    The penalty of each constraint is in units of 1 / ‖∇c‖² at the start. What is violated still when it has grown 10¹²-fold cannot be
    met.
    Sources: Bertsekas, Constrained Optimization and Lagrange Multiplier Methods (1982), sections 2.2, 3.1 and 4.4; for the penalties
    Andreani et al., On augmented Lagrangian methods with general lower-level constraints, SIAM J. Optim. 18 (2007).
    """

    nearest: float = 1e-3  # of its last step: an unknown this near to its bound may be held
    max_steps: ClassVar[int] = 1000
    patience: ClassVar[int] = 200
    unrolls: ClassVar[bool] = False
    rowwise: ClassVar[bool] = True

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, LagrangianState]:
        if not equations.kind.constrained:
            raise TypeError(
                f"AugmentedLagrangian needs constraints, and a {equations.kind.name} has none. Pass constraints=, or use "
                "'projected_newton' or 'trust_newton'."
            )
        lower, upper = equations.bounds(z)
        at = self._seen(equations, z)
        model = start(at, lower, upper, equations.kind.unknowns(z), FIRST)
        none, no = torch.zeros_like(at.value), torch.zeros_like(at.value, dtype=torch.bool)
        violation = model.violation(model.signs * at.F[:, model.n :])
        size = z[:, : model.n].abs().amax(-1)
        near = torch.zeros_like(z[:, : model.n])
        ahead = self._look(at, model, near)
        state = LagrangianState(
            at,
            model,
            ahead,
            near,
            none,
            none + CLOSE,
            size,
            violation,
            size,
            none + 1,
            ahead.known,
            ~no,
            Flight(none, size, none),
        )
        return self._residual(state), state

    def step(
        self, equations: Equations, z: Tensor, r: Tensor, state: LagrangianState
    ) -> tuple[Tensor, Tensor, LagrangianState]:
        at, model, ahead, damping, fast = state.at, state.model, state.ahead, state.damping, state.fast
        direct = state.direct & ahead.known & ~fast
        n, value, farthest = model.n, at.value, state.size
        x = at.w[:, :n]
        slow = ahead.to if finished(damping == 0) else self._to(x, model, ahead, damping)
        together = (at.w + ahead.newton).clamp(model.lower, model.upper)
        trial = torch.where((fast | direct).unsqueeze(-1), together[:, :n], slow)
        s = trial - x
        unit = _over(measured(torch.where(ahead.held, 0, ahead.gradient)), measured(s))
        more = torch.where(damping > 0, 10 * damping, unit)
        w = torch.cat([trial, at.w[:, n:]], -1)
        values = equations.attempt(equations.objective_and_constraints, w)
        there = None
        if values is not None:
            w = torch.where(
                (fast | direct).unsqueeze(-1), together, torch.cat([trial, model.multipliers(values[1])], -1)
            )
            there = equations.attempt(self._seen, equations, w)
        if values is None or there is None:  # it raises there: the whole batch comes nearer
            damping = torch.where(fast | direct, damping, more)
            return z, r, state._replace(damping=damping, fast=fast & False, direct=direct & False)
        # A step on the conditions is judged by M with the multipliers that it leads to.
        judge = model._replace(estimates=torch.where(direct.unsqueeze(-1), together[:, n:], model.estimates))
        gradient, before = judge.gradient(at), judge.merit(at.value, model.signs * at.F[:, n:])
        decrease = before - judge.merit(*values)
        hidden = decrease.abs() <= rounding(before)
        decrease = torch.where(hidden, -dot(gradient + there.F[:, :n], s) / 2, decrease)
        promised = -dot(gradient, s)
        downhill = (promised > 0) & (decrease >= SUFFICIENT * promised)
        halved = model.residual(there) <= HALVED * model.residual(at)
        accepted = torch.where(fast, halved, downhill) & (there.F.sum(-1) + there.value).isfinite()
        strays = model.violation(values[1]) > state.violation.maximum(state.reach)
        strays = strays & (state.reach > 0) & accepted & ~fast & ~direct
        accepted = accepted & ~strays
        less = torch.where(damping > NEGLIGIBLE * unit, damping / 10, 0)
        damping = torch.where(fast | direct, damping, torch.where(accepted, less, more))
        close = torch.where(fast & ~accepted, CLOSER * state.close, state.close)
        state = state._replace(damping=damping, close=close, fast=fast & accepted, direct=accepted)
        if not finished(~accepted):
            at = there.where(accepted, at)
            estimates = torch.where(((fast | direct) & accepted).unsqueeze(-1), at.w[:, n:], model.estimates)
            model = model._replace(estimates=estimates)
            size = state.size.maximum(at.w[:, :n].abs().amax(-1))
            near = torch.where(accepted.unsqueeze(-1), self.nearest * s.abs(), state.near)
            ahead = self._look(at, model, near)
            state = state._replace(at=at, model=model, ahead=ahead, size=size, near=near)
        state = self._renewed(state, strays)
        w, F = self._let_go(state)
        residual = projected_gradient(F, w, state.model.lower, state.model.upper)
        farther = accepted & (state.at.value < value) & (state.size > farthest)
        return w, residual, state._replace(flight=_onwards(state, farther, accepted, measured(residual)))

    def _let_go(self, state: LagrangianState) -> tuple[Tensor, Tensor]:
        """w, and F there, without those multipliers that Newton's step is rid of: where one is less than the slack beside it, the
        constraint does not hold z, however little is left of the multiplier. F is linear in them."""
        at, n = state.at, state.model.n
        of_w, unit = state.model.of_w[:, n:], state.model.unit[:, n:]
        multipliers, slack = at.w[:, n:], at.F[:, n:]
        goes = state.ahead.known.unsqueeze(-1) & (multipliers > 0) & (multipliers + state.ahead.newton[:, n:] == 0)
        goes = goes & (state.model.signs < 0) & (multipliers * of_w < slack * unit)
        if finished(~goes):
            return at.w, at.F
        left = torch.where(goes, multipliers, 0)
        F = at.F - at.K.times(torch.nn.functional.pad(left, (n, 0)))
        return torch.cat([at.w[:, :n], multipliers - left], -1), F

    def _renewed(self, state: LagrangianState, strays: Tensor) -> LagrangianState:
        """With another M where this one has been minimised, or leads away from the constraints."""
        at, model, ahead, size = state.at, state.model, state.ahead, state.size
        x = at.w[:, : model.n]
        done = ((ahead.to - x).abs().amax(-1) <= state.close * size) & ahead.convex
        fast = state.fast & ahead.known
        done = done & ~fast
        if finished(~(done | strays)):
            return state._replace(fast=fast)
        constraints = model.signs * at.F[:, model.n :]
        violation = model.violation(constraints)
        fell = violation <= QUARTER * state.violation
        better = (done & fell).unsqueeze(-1)
        grows = torch.where(strays | (done & ~fell), GROWTH, 1.0).to(violation)
        model = model._replace(
            estimates=torch.where(better, model.multipliers(constraints), model.estimates),
            weights=model.weights * grows.unsqueeze(-1),
        )
        return state._replace(
            model=model,
            ahead=self._look(at, model, state.near),
            close=torch.where(done & fell, (CLOSER * state.close).clamp(min=1e-10), state.close),
            violation=torch.where(done & fell, violation, state.violation),
            reach=torch.where(done, size, state.reach),
            penalty=state.penalty * grows,
            fast=fast | done,
        )

    def estimate(self, z: Tensor, r: Tensor, state: LagrangianState) -> Estimate:
        """Newton's step on the optimality conditions, of z alone; infinite where it is not known, or M is not convex, or multipliers
        grow without bound, for there are none where the gradients of constraints degenerate. Where the multipliers are off, what is
        left of ∇L in z's unit counts too."""
        n, ahead = state.model.n, state.ahead
        forces = (z * state.model.of_w)[:, n:].abs().amax(-1)
        known = (ahead.known & ~(forces > BOUNDLESS * state.size)).unsqueeze(-1)
        left = r[:, :n].abs()
        acting = (state.at.K.largest(n) * z.abs()).amax(-1, keepdim=True)
        left = torch.where(left > torch.finfo(left.dtype).eps ** STATIONARY * acting, left * state.model.unit[:, :n], 0)
        newton = ahead.newton[:, :n]
        behind = left.amax(-1, keepdim=True) > BEHIND * newton.abs().amax(-1, keepdim=True)
        step = torch.where(known, torch.where(behind, left, newton), torch.inf)
        return Estimate(torch.cat([step, torch.zeros_like(z[:, n:])], -1).detach(), 0.0)

    def verdict(self, state: LagrangianState) -> Tensor:
        """PRIMAL_INFEASIBLE where no penalty brings the constraints nearer; DIVERGED where z runs off along a slope that does not
        end."""
        model, flight = state.model, state.flight
        violation = model.violation(model.signs * state.at.F[:, model.n :])
        rounding = torch.finfo(violation.dtype).eps ** VIOLATED * state.size
        never = (state.penalty >= LARGEST) & (violation > rounding)
        away = (flight.steps >= FLIGHT) & (state.size >= FARTHER * flight.size)
        away = away & (measured(self._residual(state)) >= flight.residual)
        verdict = torch.where(away, int(Status.DIVERGED), int(Status.RUNNING))
        return torch.where(never, int(Status.PRIMAL_INFEASIBLE), verdict)

    def _seen(self, equations: Equations, w: Tensor) -> Point:
        value, jacobian = equations.objective_and_jacobian(w)
        return Point(w, value, jacobian.value, kkt_of(equations, jacobian))

    def _residual(self, state: LagrangianState) -> Tensor:
        return projected_gradient(state.at.F, state.at.w, state.model.lower, state.model.upper)

    def _look(self, at: Point, model: Lagrangian, near: Tensor) -> Ahead:
        """What lies ahead, where unknowns that are so ``near`` to their bounds (B, n) may be held."""
        n = model.n
        x, lower, upper = at.w[:, :n], model.lower[:, :n], model.upper[:, :n]
        gradient, hessian = model.derivatives(at)
        held = ((x <= lower + near) & (gradient > 0)) | ((x >= upper - near) & (gradient < 0))
        merit = model.merit(at.value, model.signs * at.F[:, n:])
        newton, settled = model.newton(at)
        ahead = Ahead(merit, gradient, hessian, held, x, hessian.convex(held), newton, settled)
        return ahead._replace(to=self._to(x, model, ahead, torch.zeros_like(merit)))

    def _to(self, x: Tensor, model: Lagrangian, ahead: Ahead, damping: Tensor) -> Tensor:
        """Where the step on M from x leads, projected on the bounds: what is held comes to lie exactly at its own."""
        lower, upper = model.lower[:, : model.n], model.upper[:, : model.n]
        d = ahead.hessian.direction(ahead.gradient, ahead.held, damping)
        return torch.where(ahead.held, torch.where(ahead.gradient > 0, lower, upper), (x + d).clamp(lower, upper))


def _onwards(state: LagrangianState, farther: Tensor, accepted: Tensor, residual: Tensor) -> Flight:
    """The flight after a step that led ``farther`` away, or not; one that was not ``accepted`` tells nothing."""
    over = accepted & ~farther
    old = state.flight
    steps = torch.where(over, 0, old.steps + farther)
    begins = over | (old.steps == 0)
    size = state.at.w[:, : state.model.n].abs().amax(-1)
    return Flight(steps, torch.where(begins, size, old.size), torch.where(begins, residual, old.residual))


def _over(a: Tensor, b: Tensor) -> Tensor:
    """a / b where that is a positive number, else 1."""
    quotient = a / torch.where(b > 0, b, 1)
    return torch.where((quotient > 0) & quotient.isfinite(), quotient, 1)
