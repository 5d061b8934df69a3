"""The Levenberg–Marquardt method, for fits and for square systems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished, values_hidden
from torchimplicit.graph.loop import settle
from torchimplicit.linear.triangular import apply, solve_triangle, triangularise
from torchimplicit.parameters import check_positive
from torchimplicit.solvers.equations import Equations, Estimate
from torchimplicit.solvers.method import Method
from torchimplicit.solvers.tangent import ACCEPTED, Tangent, check_squares, compare, condition, estimate, first_radius

SECULAR_STEPS = 10  # at most so many tries for λ in one step; nearly always two suffice


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
class LevenbergMarquardt(Method):
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
    rowwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive("LevenbergMarquardt: factor", self.factor)

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, LevenbergMarquardtState]:
        check_squares(equations, "LevenbergMarquardt")
        linearised = equations.jacobian_of_squares(z)
        tangent = Tangent.of(linearised, z, not equations.kind.minimised, self.geodesic)
        scale = torch.where(tangent.columns > 0, tangent.columns, 1)
        radius = first_radius(tangent, scale, z, self.factor)
        state = LevenbergMarquardtState(
            tangent, scale, radius, torch.zeros_like(radius), torch.ones_like(radius, dtype=torch.bool)
        )
        return condition(equations, tangent, linearised.value), state

    def step(
        self, equations: Equations, z: Tensor, r: Tensor, state: LevenbergMarquardtState
    ) -> tuple[Tensor, Tensor, LevenbergMarquardtState]:
        tangent, scale, radius, damping, fresh = state
        with torch.no_grad():
            damping = _damping(tangent, scale, radius, damping)
        p = torch.where((damping == 0).unsqueeze(-1), -tangent.newton, _damped(tangent.R, tangent.c, scale, damping))
        length = torch.linalg.vector_norm(scale * p.detach(), dim=-1)
        radius = torch.where(fresh, radius.fmin(length), radius)
        step = p + self._bend(equations, z, p, state, damping) if self.geodesic else p
        linearised = equations.jacobian_of_squares(z + step)
        new, actual = compare(tangent, linearised, z, step, not equations.kind.minimised)
        with torch.no_grad():
            norm, norm_new = tangent.norm, torch.linalg.vector_norm(linearised.value, dim=-1)
            modelled = (torch.linalg.vector_norm(apply(tangent.R, p), dim=-1) / norm).square()
            damped = damping * (length / norm).square()
            ratio = actual / (modelled + 2 * damped)
            taken = ratio >= ACCEPTED  # not where NaN
            taken = taken | (r == 0).all(-1)  # to where z is already: the step has a derivative
            slope = modelled + damped
            shrink = torch.where(actual >= 0, 0.5, 0.5 * slope / (slope - 0.5 * actual))
            shrink = torch.where((norm_new >= 10 * norm) | ~(shrink >= 0.1), 0.1, shrink)
            shorter, longer = ~(ratio > 0.25), (ratio >= 0.75) | (damping == 0)
            radius = torch.where(shorter, shrink * radius.fmin(10 * length), torch.where(longer, 2 * length, radius))
            damping = damping * torch.where(shorter, 1 / shrink, torch.where(longer, 0.5, torch.ones_like(shrink)))
        if finished(~taken):
            return z, r, LevenbergMarquardtState(tangent, scale, radius, damping, fresh)
        rows = taken.unsqueeze(-1)
        z, tangent = torch.where(rows, z + step, z), new.where(taken, tangent)
        r = torch.where(rows, condition(equations, new, linearised.value), r)
        scale = scale.maximum(tangent.columns)
        state = LevenbergMarquardtState(tangent, scale, radius, damping, fresh & ~taken)
        return z, r, state

    def merit(self, state: LevenbergMarquardtState) -> Tensor:
        """Half of the sum of squares at z, (B,)."""
        return state.tangent.norm.square() / 2

    def estimate(self, z: Tensor, r: Tensor, state: LevenbergMarquardtState) -> Estimate:
        """The step to the minimum of the model at z."""
        return estimate(state.tangent)

    def _bend(
        self, equations: Equations, z: Tensor, p: Tensor, state: LevenbergMarquardtState, damping: Tensor
    ) -> Tensor:
        """Half of the geodesic acceleration a, (JᵀJ + λD²) a = −Jᵀ r_pp; 0 where a is more than 3/8 of p."""
        tangent, scale = state.tangent, state.scale
        assert tangent.jacobian is not None
        assert tangent.value is not None
        h = 0.1
        ahead = equations.squares(z + h * p)
        second = 2 / h * ((ahead - tangent.value) / h - apply(tangent.jacobian, p))
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
