"""An interior-point method for batches of quadratic programs that finds a solution, or a proof that there is none."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import occurs
from torchimplicit.programs.condensed import Condensed
from torchimplicit.programs.quadratic import OneSided
from torchimplicit.programs.rows import beside, dot, largest, times
from torchimplicit.programs.together import State, together
from torchimplicit.status import Status

PROOF = 1e-7  # of a certificate: it excludes all solutions that are not 1/PROOF times larger than the data
BACK = 0.98  # of the way to the boundary: nearer to it the next steps are shorter
PROXIMAL = 1e-10  # of the linear systems: a certificate needs accurate steps
REFINEMENTS = 1  # of the linear systems, where a first point was not near enough
PARTS = 5  # of a point


@dataclass(frozen=True)
class Point:
    """Unknowns x, multipliers y, slacks s, and τ and κ: (B, n, 1), (B, M, 1), (B, M, 1), (B, 1, 1) each. The solution is (x, y, s) / τ;
    where τ tends to 0, x or y tends to a ray that proves that there is none."""

    x: Tensor
    y: Tensor
    s: Tensor
    tau: Tensor
    kappa: Tensor

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return self.x, self.y, self.s, self.tau, self.kappa

    def of_systems(self, which: Tensor) -> Point:
        return Point(*(part[which] for part in self.parts))

    def put(self, which: Tensor, other: Point) -> Point:
        """With those of ``other`` in the places ``which``."""
        return Point(*(a.index_copy(0, which, b) for a, b in zip(self.parts, other.parts, strict=True)))


@dataclass(frozen=True)
class Residuals:
    """What the conditions of the embedding lack, and the terms that they are made of."""

    of_x: Tensor
    of_y: Tensor
    of_tau: Tensor
    gap: Tensor  # μ, the mean product of slacks and multipliers
    Qx: Tensor
    Ry: Tensor
    Rx: Tensor
    xQx: Tensor
    qx: Tensor
    ty: Tensor

    @staticmethod
    def at(program: OneSided, point: Point) -> Residuals:
        x, y, s, tau, kappa = point.parts
        Qx, Ry, Rx = times(program.Q, x), program.rows.transposed(y), program.rows.apply(x)
        xQx, qx, ty = dot(x, Qx), dot(program.q, x), dot(program.t, y)
        pairs = program.either[0].sum(-2, keepdim=True) + 1
        gap = (dot(s, y) + tau * kappa) / pairs
        of_y = Rx + s - program.t * tau
        return Residuals(
            Qx + Ry + program.q * tau, of_y, qx + ty + kappa + xQx / tau, gap, Qx, Ry, Rx, xQx, qx, ty
        )  # fmt: skip


def interior(
    program: OneSided, steps: Tensor, max_steps: int, accuracy: float, start: Point | None = None
) -> tuple[Point, Tensor, Tensor]:
    """A point near the solution of each program, whose conditions it meets to ``accuracy`` beside the size of their terms, or the ray
    that proves that there is none; how it ended, (B,), and after how many steps, of which each has made ``steps`` before. To ``start``
    from the point of an earlier call goes on with it.

    The homogeneous embedding of the optimality conditions, with Mehrotra's predictor and corrector and one length for all steps. All
    systems go on together, each to its own end.
    Sources: Andersen and Ye, On a homogeneous algorithm for the monotone complementarity problem, Math. Prog. 84 (1999); for
    quadratic objectives Goulart and Chen, Clarabel, arXiv:2405.12762 (2024), section 3; Mehrotra, On the implementation of a
    primal-dual interior point method, SIAM J. Optim. 2 (1992).
    """
    refinements = 0 if start is None else REFINEMENTS

    def look(program: OneSided, state: State) -> Tensor:
        return _verdict(program, Point(*state[:PARTS]), Residuals(*state[PARTS:]), accuracy)

    def step(program: OneSided, state: State) -> State:
        return _with_residuals(program, _step(program, Point(*state[:PARTS]), Residuals(*state[PARTS:]), refinements))

    state = _with_residuals(program, _start(program) if start is None else start)
    state, status, steps = together(program, state, steps, max_steps, look, step)
    return Point(*state[:PARTS]), status, steps


def _with_residuals(program: OneSided, point: Point) -> State:
    return (*point.parts, *vars(Residuals.at(program, point)).values())


def _start(program: OneSided) -> Point:
    """The solution with quadratic penalties for unknowns, slacks and multipliers, moved inside."""
    K = Condensed(program.Q, program.rows, program.either[0], curvature=1.0)
    x, y = K.approximate(-program.q, program.t)
    s = torch.where(program.equal, torch.inf, -y)
    lift = _lift(s)
    down = _lift(torch.where(program.equal, torch.inf, y))
    one = torch.ones_like(program.q[:, :1])
    s = torch.where(program.equal, 0, s + lift)
    return Point(x, torch.where(program.equal, y, y + down), s, one, one)


def _lift(v: Tensor) -> Tensor:
    """What makes all numbers of a column positive."""
    if not v.shape[-2]:
        return v.new_zeros(len(v), 1, 1)
    lowest = v.amin(-2, keepdim=True)
    return torch.where(lowest > 0, 0, 1 - lowest)


def _step(program: OneSided, point: Point, r: Residuals, refinements: int) -> Point:
    """One step of predictor and corrector."""
    x, y, s, tau, kappa = point.parts
    free, equal, beyond = program.either
    of_y, of_s = (free / v.maximum(equal) for v in (y, s))  # 1 / v, and 0 in equalities
    W = s * of_y
    K = Condensed(program.Q, program.rows, W, proximal=PROXIMAL)
    X, Y = K.refined(beside(-r.of_x, -program.q), beside(s - r.of_y, program.t), refinements)
    x1, y1, x2, y2 = X[..., :1], Y[..., :1], X[..., 1:], Y[..., 1:]
    slope = program.q + r.Qx * (2 / tau)
    off = x2 - x / tau
    # = (q + 2 Q ξ)·x₂ + t·y₂ − ξᵀQξ − κ/τ for ξ = x/τ, in a form that rounding leaves negative
    below = -(dot(off, times(program.Q, off)) + dot(y2, W * y2) + kappa / tau)

    def direction(x1: Tensor, y1: Tensor, left: Tensor | float, pairs: Tensor, pair: Tensor) -> Point:
        """With ``pairs`` in place of s y, each divided by its y, and ``pair`` of κ τ; of x without what d_tau adds."""
        d_tau = (pair / tau - left * r.of_tau - dot(slope, x1) - dot(program.t, y1)) / below
        dy = y1 + d_tau * y2
        return Point(x1, dy, -torch.addcmul(pairs, W, dy), d_tau, -(pair + kappa * d_tau) / tau)

    def length(d: Point, part: float) -> Tensor:
        """How far one may go, (B, 1, 1): at most 1, and ``part`` of the way to where a slack or a multiplier vanishes."""
        grows = (d.y * of_y).minimum(d.s * of_s)
        grows = torch.cat([grows, d.tau / tau, d.kappa / kappa], -2).amin(-2, keepdim=True)
        return (part / (-grows).clamp(min=torch.finfo(grows.dtype).tiny)).clamp(max=1)

    affine = direction(x1, y1, 1.0, s, kappa * tau)
    sigma = (1 - length(affine, 1.0)) ** 3
    products = s * y
    smallest = torch.cat([products + beyond, tau * kappa], -2).amin(-2, keepdim=True)
    evenness = smallest / r.gap  # of the smallest product, beside the mean
    sigma = sigma.maximum(0.1 * (0.05 * (1 - evenness) / evenness).clamp(max=2) ** 3)
    left, centre = 1 - sigma, sigma * r.gap
    pairs = (torch.addcmul(products, affine.s, affine.y) - centre) * of_y
    x1, y1 = K.refined(-left * r.of_x, torch.addcmul(pairs, left, r.of_y, value=-1), refinements)
    towards = direction(x1, y1, left, pairs, kappa * tau - centre + affine.kappa * affine.tau)
    towards = replace(towards, x=torch.addcmul(towards.x, towards.tau, x2))
    alpha = length(towards, BACK)
    return Point(*(torch.addcmul(at, alpha, d) for at, d in zip(point.parts, towards.parts, strict=True)))


def _verdict(program: OneSided, point: Point, r: Residuals, accuracy: float) -> Tensor:
    """What each system has come to, (B,): a solution, a proof that there is none, NaN, or nothing yet."""
    s, tau, kappa = point.s, point.tau, point.kappa
    # each row in its own size: some may be far away
    of_rows = torch.maximum(program.t.abs() * tau, r.Rx.abs()).maximum(s) + tau
    feasible = largest(r.of_y / of_rows) <= accuracy
    of_x = (largest(program.q) * tau).maximum(largest(r.Qx)).maximum(largest(r.Ry))
    stationary = largest(r.of_x) <= accuracy * (tau + of_x)
    half = r.xQx / tau / 2
    primal, dual = half + r.qx, -half - r.ty
    closed = (primal - dual).abs() <= accuracy * (tau + primal.abs().minimum(dual.abs()))
    verdict = torch.where(feasible & stationary & closed, Status.CONVERGED, Status.RUNNING)
    if occurs(tau < kappa):
        violation = torch.where(program.equal, r.Rx.abs(), r.Rx.clamp(min=0))
        verdict = torch.where(proves_unbounded(r.Qx, violation, r.qx), Status.DUAL_INFEASIBLE, verdict)
        verdict = torch.where(proves_infeasible(r.Ry, r.ty), Status.PRIMAL_INFEASIBLE, verdict)
    sums = r.of_x.sum(-2, keepdim=True) + r.of_y.sum(-2, keepdim=True) + r.of_tau
    return torch.where(sums.isfinite(), verdict, Status.NONFINITE).flatten()


def proves_infeasible(Ry: Tensor, ty: Tensor) -> Tensor:
    """Whether multipliers y of the rows prove that no x meets R x ≤ t, unless it is very large: yᵀR x ≤ yᵀt."""
    return (ty < 0) & (Ry.abs().sum(-2, keepdim=True) <= PROOF * -ty)


def proves_unbounded(Qx: Tensor, violation: Tensor, qx: Tensor) -> Tensor:
    """Whether the objective falls for ever in the direction x, which the rows allow but for a ``violation``: there are no multipliers,
    unless they are very large."""
    off = Qx.abs().sum(-2, keepdim=True).maximum(violation.sum(-2, keepdim=True))
    return (qx < 0) & (off <= PROOF * -qx)
