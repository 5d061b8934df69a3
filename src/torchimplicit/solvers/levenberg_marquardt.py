"""The Levenberg–Marquardt method, for fits and for square systems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished, values_hidden
from torchimplicit.graph.loop import settle
from torchimplicit.linear.triangularise import solve_triangle, triangularise
from torchimplicit.linear.vectors import times
from torchimplicit.parameters import check_positive
from torchimplicit.solvers.equations import Equations
from torchimplicit.solvers.tangent import ACCEPTED, Found, OnTangent, Seen, Tangent, first_radius
from torchimplicit.solvers.trial import Taken

SECULAR_STEPS = 10  # at most so many tries for λ in one step; nearly always two suffice

# A step, the part of it that the model knows, and the length of that in scaled unknowns.
Plan = tuple[Tensor, Tensor, Tensor]


class LevenbergMarquardtState(NamedTuple):
    """What the method remembers.

    tangent : the linear model at z.
    scale : D, the largest norm that each column of J has had, (B, n).
    radius : Δ of the trust region in scaled unknowns, (B,).
    damping : the last λ, (B,).
    fresh : the systems that have not taken a step, (B,).
    """

    tangent: Tangent
    scale: Tensor
    radius: Tensor
    damping: Tensor
    fresh: Tensor


@dataclass(frozen=True)
class LevenbergMarquardt(OnTangent[Plan]):
    """The step p that makes ‖r + J p‖ smallest within ‖D p‖ ≤ Δ: (JᵀJ + λD²) p = −Jᵀr, with λ = 0 where that lies within.

    Solved by QR factorisation of J and of (R, √λ D), never through JᵀJ. D holds the largest norms that the columns of J have
    had, so that the units of the unknowns do not matter. Δ starts at ``factor`` · ‖D z0‖ and follows the ratio of the actual to
    the predicted decrease of ‖r‖², but lets the first Gauss–Newton step be tried whatever its length: a start near 0 says nothing of
    the size of z; λ comes from Newton's method for 1/‖D p‖ = 1/Δ. A step with (nearly) no decrease, or to
    where r is not finite, is not taken. ``geodesic``: half of the second-order term is added to the step where it is small, at
    the price of one evaluation; it follows the bends of narrow valleys.
    Sources: Moré, The Levenberg–Marquardt algorithm: implementation and theory (1978), whose constants these are; Transtrum and
    Sethna, Improvements to the Levenberg–Marquardt algorithm for nonlinear least-squares minimization (2012), eq. 15.
    """

    factor: float = 100.0
    geodesic: bool = False
    max_steps: ClassVar[int] = 2000
    patience: ClassVar[int] = 30
    in_graph: ClassVar[bool] = True
    rowwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive("LevenbergMarquardt: factor", self.factor)

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, LevenbergMarquardtState]:
        r, tangent = self.start(equations, z, keep=self.geodesic)
        scale = torch.where(tangent.columns > 0, tangent.columns, 1)
        radius = first_radius(tangent, scale, z, self.factor)
        fresh = torch.ones_like(radius, dtype=torch.bool)
        return r, LevenbergMarquardtState(tangent, scale, radius, torch.zeros_like(radius), fresh)

    def propose(
        self, equations: Equations, z: Tensor, r: Tensor, state: LevenbergMarquardtState
    ) -> tuple[Tensor, Plan, LevenbergMarquardtState]:
        tangent, scale, radius, damping, fresh = state
        with torch.no_grad():
            damping = _damping(tangent, scale, radius, damping)
        p = torch.where((damping == 0).unsqueeze(-1), -tangent.newton, _damped(tangent.R, tangent.c, scale, damping))
        length = torch.linalg.vector_norm(scale * p.detach(), dim=-1)
        radius = torch.where(fresh, radius.fmin(length), radius)
        step = p + self._bend(equations, z, p, state, damping) if self.geodesic else p
        return z + step, (step, p, length), state._replace(radius=radius, damping=damping)

    def nearer(self, plan: Plan, state: LevenbergMarquardtState) -> LevenbergMarquardtState:
        *_, length = plan
        return state._replace(radius=state.radius.minimum(length) / 4)

    def judge(self, trial: Seen[Plan], state: LevenbergMarquardtState) -> tuple[Tensor, Found, LevenbergMarquardtState]:
        tangent, _, radius, damping, _ = state
        step, p, length = trial.plan
        new, actual = self.compared(trial, step, tangent)
        with torch.no_grad():
            norm, norm_new = tangent.norm, torch.linalg.vector_norm(trial.there.value, dim=-1)
            modelled = (torch.linalg.vector_norm(times(tangent.R, p), dim=-1) / norm).square()
            damped = damping * (length / norm).square()
            ratio = actual / (modelled + 2 * damped)
            taken = ratio >= ACCEPTED  # not where NaN
            taken = taken | (trial.r == 0).all(-1)  # to where z is already: the step has a derivative
            slope = modelled + damped
            shrink = torch.where(actual >= 0, 0.5, 0.5 * slope / (slope - 0.5 * actual))
            shrink = torch.where((norm_new >= 10 * norm) | ~(shrink >= 0.1), 0.1, shrink)
            shorter, longer = ~(ratio > 0.25), (ratio >= 0.75) | (damping == 0)
            radius = torch.where(shorter, shrink * radius.fmin(10 * length), torch.where(longer, 2 * length, radius))
            damping = damping * torch.where(shorter, 1 / shrink, torch.where(longer, 0.5, torch.ones_like(shrink)))
        return taken, new, state._replace(radius=radius, damping=damping)

    def moved(self, tangent: Tangent, taken: Taken, state: LevenbergMarquardtState) -> LevenbergMarquardtState:
        scale = state.scale.maximum(tangent.columns)
        return state._replace(tangent=tangent, scale=scale, fresh=state.fresh & ~taken.rows)

    def _bend(
        self, equations: Equations, z: Tensor, p: Tensor, state: LevenbergMarquardtState, damping: Tensor
    ) -> Tensor:
        """Half of the geodesic acceleration a, (JᵀJ + λD²) a = −Jᵀ r_pp; 0 where a is more than 3/8 of p."""
        tangent, scale = state.tangent, state.scale
        assert tangent.jacobian is not None
        assert tangent.value is not None
        h = 0.1
        ahead = equations.squares(z + h * p)
        second = 2 / h * ((ahead - tangent.value) / h - times(tangent.jacobian, p))
        R, c = triangularise(tangent.jacobian, torch.where(second.isfinite(), second, 0))
        bend = _damped(R, c, scale, damping) / 2
        small = torch.linalg.vector_norm(scale * bend, dim=-1) <= 0.375 * torch.linalg.vector_norm(scale * p, dim=-1)
        return torch.where((small & second.isfinite().all(-1)).unsqueeze(-1), bend, 0)


def _damped(R: Tensor, c: Tensor, scale: Tensor, damping: Tensor) -> Tensor:
    """p that makes ‖R p + c‖² + λ ‖D p‖² smallest."""
    rows = None if values_hidden() else damping.nonzero().flatten()
    if rows is None or len(rows) == len(R):
        return -solve_triangle(*_stacked(R, c, scale, damping))
    if len(rows):
        R_damped, c_damped = _stacked(R[rows], c[rows], scale[rows], damping[rows])
        R, c = R.index_copy(0, rows, R_damped), c.index_copy(0, rows, c_damped)
    return -solve_triangle(R, c)


def _stacked(R: Tensor, c: Tensor, scale: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """The triangle of (R, √λ D), and (c, 0) reduced with it."""
    if finished(damping == 0):
        return R, c
    tall = torch.cat([R, torch.diag_embed(damping.sqrt().unsqueeze(-1) * scale)], dim=-2)
    return triangularise(tall, torch.cat([c, torch.zeros_like(c)], dim=-1))


def _damping(tangent: Tangent, scale: Tensor, radius: Tensor, last: Tensor) -> Tensor:
    """λ with ‖D p(λ)‖ = Δ up to a tenth, (B,), or 0 where ‖D p(0)‖ ≤ 1.1 Δ."""
    undamped = torch.linalg.vector_norm(scale * tangent.newton, dim=-1)
    outside = ~(undamped <= 1.1 * radius)
    if finished(~outside):
        return torch.zeros_like(radius)
    if values_hidden():
        return torch.where(outside, _secular(tangent, scale, radius, last), 0)
    rows = outside.nonzero().flatten()
    found = _secular(tangent.of_rows(rows), scale[rows], radius[rows], last[rows])
    return torch.zeros_like(radius).index_copy(0, rows, found.to(radius.dtype))


def _secular(tangent: Tangent, scale: Tensor, radius: Tensor, last: Tensor) -> Tensor:
    """λ with ‖D p(λ)‖ = Δ up to a tenth, (B,)."""
    R, c, regular = tangent.R, tangent.c, tangent.regular
    none = torch.zeros_like(radius)
    phi, newton = _excess(R, c, scale, radius, none)
    steepest = torch.linalg.vector_norm(tangent.gradient / scale, dim=-1)
    high = (steepest / radius).clamp(min=torch.finfo(radius.dtype).tiny)
    low = torch.where(regular, newton.clamp(min=0), 0).minimum(high)
    guess = torch.where(last > 0, last, torch.where(regular, steepest / (phi + radius), 0))
    damping = guess.maximum(low).maximum(0.001 * high).minimum(high)
    state = damping, low, high, torch.zeros_like(regular)
    return settle(_nearer_damping, state, SECULAR_STEPS, (R, c, scale, radius, regular))[0]


def _nearer_damping(
    state: tuple[Tensor, ...], R: Tensor, c: Tensor, scale: Tensor, radius: Tensor, regular: Tensor
) -> tuple[Tensor, ...]:
    """The next λ between its bounds, and where the last one was right."""
    damping, low, high, done = state
    phi, newton = _excess(R, c, scale, radius, damping)
    # Without full rank the shortest of the best steps may lie within: then any small λ will do.
    done = done | (phi.abs() <= 0.1 * radius) | ((phi < 0) & ~regular) | ~newton.isfinite()
    low = torch.where(phi > 0, low.maximum(damping), low)
    high = torch.where(phi < 0, high.minimum(damping), high)
    return torch.where(done, damping, low.maximum(damping + newton).minimum(high)), low, high, done


def _excess(R: Tensor, c: Tensor, scale: Tensor, radius: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """φ = ‖D p‖ − Δ, and Newton's correction of λ for the root of 1/Δ − 1/‖D p‖."""
    R_damped, c_damped = _stacked(R, c, scale, damping)
    p = -solve_triangle(R_damped, c_damped)
    scaled = scale * p
    length = torch.linalg.vector_norm(scaled, dim=-1)
    w = solve_triangle(R_damped, scale * (scaled / length.unsqueeze(-1)), transposed=True)
    return length - radius, (length - radius) / radius / w.square().sum(-1)
