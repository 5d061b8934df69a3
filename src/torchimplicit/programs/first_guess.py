"""A first guess at the solutions of quadratic programs, in single precision: near enough to tell which constraints hold them."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.programs.condensed import Condensed
from torchimplicit.programs.interior_point import BACK, Point
from torchimplicit.programs.quadratic import OneSided
from torchimplicit.programs.rows import dot, largest, times
from torchimplicit.programs.together import State, together
from torchimplicit.status import Status

ACCURACY = 3e-3
PROXIMAL = 1e-4  # of the linear systems
SHORT = 0.1  # of a step: there is no solution, or none that can be found in this way
MAX_STEPS = 8  # it takes three or four, or is no use
SPREAD = 0.3  # of the mean square of what slacks less multipliers are at the start: the products of both


def guess(program: OneSided, max_steps: int) -> tuple[Point, Tensor, Tensor]:
    """A point near the solution of each program; how it ended, (B,), and after how many steps. Where it has not CONVERGED nothing is
    known, not even whether there is a solution.

    Mehrotra's predictor and corrector. Besides unknowns x, multipliers y and slacks s, each step knows what the conditions
    Qx + q + Rᵀy = 0 and Rx + s = t lack after it, which spares it the products with Q and R.
    Source: Mehrotra, On the implementation of a primal-dual interior point method, SIAM J. Optim. 2 (1992).
    """
    single = program.to(torch.float32)
    steps = torch.zeros(len(program.q), dtype=torch.int64, device=program.q.device)
    (x, y, s, *_), status, steps = together(single, _start(single), steps, min(max_steps, MAX_STEPS), _look, _step)
    x, y, s = (part.to(program.q.dtype) for part in (x, y, s))
    one = torch.ones_like(x[:, :1])
    return Point(x, y, s, one, one), status, steps


def _start(program: OneSided) -> State:
    """The solution with a quadratic penalty for constraints, whose multipliers are what slacks lack, y = −s; then s and y with the same
    difference, but all with one product."""
    free, _, _ = program.either
    x, y = Condensed(program.Q, program.rows, free, proximal=PROXIMAL).approximate(-program.q, program.t)
    product = SPREAD * _mean(free, y.square().clamp(max=1)) + PROXIMAL
    root = (y.square() + 4 * product).sqrt()
    s, y = free * (root - y) / 2, torch.lerp(y, (root + y) / 2, free)
    of_x, of_y = times(program.Q, x) + program.q + program.rows.transposed(y), program.rows.apply(x) + s - program.t
    return x, y, s, of_x, of_y, torch.ones_like(x[:, :1])


def _look(program: OneSided, state: State) -> Tensor:
    """CONVERGED where the conditions are met to ``ACCURACY``, beside numbers of about 1, STAGNATED where the last step was short."""
    x, y, s, of_x, of_y, alpha = state
    gap = dot(s, y) + dot(x, of_x) - dot(y, of_y)
    primal = (dot(x, of_x + program.q) - dot(y, of_y - s + program.t)) / 2
    closed = gap.abs() <= ACCURACY * (1 + primal.abs().minimum((primal - gap).abs()))
    stationary = largest(of_x) <= ACCURACY * (1 + largest(program.q))
    feasible = largest(of_y / (1 + program.t.abs().maximum(s))) <= ACCURACY
    verdict = torch.where(alpha < SHORT, Status.STAGNATED, Status.RUNNING)
    verdict = torch.where(closed & stationary & feasible, Status.CONVERGED, verdict)
    return torch.where(gap.isfinite(), verdict, Status.NONFINITE).flatten()


def _step(program: OneSided, state: State) -> State:
    """One step of predictor and corrector."""
    *at, _ = state
    _, y, s, of_x, of_y = at
    free, equal, _ = program.either
    part_of_y, part_of_s = (free / v.maximum(equal) for v in (y, s))  # 1 / v, and 0 in equalities
    W = s * part_of_y
    K = Condensed(program.Q, program.rows, W, proximal=PROXIMAL)

    def reach(dy: Tensor, ds: Tensor, part: float) -> Tensor:
        """How far one may go, (B, 1, 1): at most 1, and ``part`` of the way to where a slack or a multiplier vanishes."""
        falls = largest((dy * part_of_y).minimum(ds * part_of_s).clamp(max=0))
        return part / falls.clamp(min=part)

    _, dy = K.approximate(-of_x, s - of_y)
    ds = -torch.addcmul(s, W, dy)
    centre = (1 - reach(dy, ds, 1.0)) ** 3 * _mean(free, s * y)
    pairs = torch.addcmul(s, torch.addcmul(-centre, ds, dy), part_of_y)
    dx, dy = K.approximate(-of_x, pairs - of_y)
    ds = -torch.addcmul(pairs, W, dy)
    alpha = reach(dy, ds, BACK)
    moves = dx, dy, ds, -torch.add(of_x, dx, alpha=PROXIMAL), torch.sub(PROXIMAL * dy, of_y)
    return (*(torch.addcmul(old, alpha, d) for old, d in zip(at, moves, strict=True)), alpha)


def _mean(free: Tensor, v: Tensor) -> Tensor:
    """Of the numbers of inequalities, (B, 1, 1)."""
    return dot(free, v) / free.sum(-2, keepdim=True).clamp(min=1)
