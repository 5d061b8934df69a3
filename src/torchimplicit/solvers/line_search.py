"""Descent along lines: the search for a step length that satisfies the strong Wolfe conditions, for every system on its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished
from torchimplicit.norms import rounding
from torchimplicit.solvers.descent import check_minimised, dot
from torchimplicit.solvers.equations import Equations, Estimate
from torchimplicit.solvers.method import Method

TRIALS = 25  # on one line, before it is given up for steepest descent
FIRST = (
    1 / 64
)  # of z: how far the first trial along a gradient leads; no power of ten times that leads to 0, which is often a saddle
NEAR = 0.1  # of z: a point that near shows the curvature at z
FADING = 0.7  # of what an earlier line has shown of the curvature, at each later point
SUFFICIENT = 1e-4  # the part of the decrease that the slope at the start promises


class Point(NamedTuple):
    """A point of a line: the step length that leads there, the objective and its slope; each (B,)."""

    step: Tensor
    value: Tensor
    slope: Tensor


class LineState(NamedTuple):
    """What the next step needs.

    d : the direction of the line through z, (B, n).
    step : the length to be tried next, (B,).
    start : the line at z.
    low : the longest step that was too short.
    high : the shortest one that was too long; its step is infinite as long as there is none.
    trials : points tried on this line, (B,).
    gain : the largest 1 / φ''(α) of late, with |d| = 1: as much as a gradient there stands for, (B,); infinite at the start.
    memory : what the method remembers.
    """

    d: Tensor
    step: Tensor
    start: Point
    low: Point
    high: Point
    trials: Tensor
    gain: Tensor
    memory: Any


@dataclass(frozen=True)
class LineSearch(Method, ABC):
    """z ← z + α d. Every step tries one point on the line of each system, with one evaluation of the objective and its gradient.

    A system whose trial point is refused (too high, still falling steeply, or not finite) stays where it is, and tries another
    length in the next step; its neighbours go on. α satisfies the strong Wolfe conditions, φ(α) ≤ φ(0) + 1e-4 α φ'(0) and
    |φ'(α)| ≤ ``curvature`` |φ'(0)|; where rounding hides the change of φ, the
    first is φ'(α) ≤ (2e-4 − 1) φ'(0), the same for a parabola.
    A direction that does not descend, and a line on which no point was found, is replaced by steepest descent.
    Source: Nocedal and Wright, Numerical Optimization (2006), section 3.5, with bisection's bracket kept at every step.
    """

    curvature: ClassVar[float] = 0.9
    max_steps: ClassVar[int] = 1000
    patience: ClassVar[int] = 60
    in_graph: ClassVar[bool] = True

    @abstractmethod
    def forget(self, memory: Any, z: Tensor, rows: Tensor) -> Any:
        """The memory with nothing in it for these rows; ``memory`` is None at the start."""

    @abstractmethod
    def updated(self, memory: Any, s: Tensor, y: Tensor, r: Tensor, rows: Tensor) -> Any:
        """The memory after the steps s of these rows, along which the gradient has changed by y to r."""

    @abstractmethod
    def direction(self, memory: Any, r: Tensor) -> tuple[Tensor, Tensor]:
        """Where to go, (B, n), and the first length to try, (B,), 0 for steepest descent's own, at a point with the gradient r."""

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, LineState]:
        check_minimised(equations, type(self).__name__)
        value, r = equations.objective_and_residual(z)
        everywhere = torch.ones(z.shape[0], dtype=torch.bool, device=z.device)
        return r, self._line(
            self.forget(None, z, everywhere), z, value.detach(), r, torch.full_like(value, torch.inf).detach()
        )

    def step(self, equations: Equations, z: Tensor, r: Tensor, state: LineState) -> tuple[Tensor, Tensor, LineState]:
        d, step, start, low, high, trials, gain, memory = state
        trial = z + step.unsqueeze(-1) * d
        value, r_trial = equations.objective_and_residual(trial)
        point = Point(step, value.detach(), dot(r_trial.detach(), d.detach()))
        gain = _gain(gain, z.detach(), step, d.detach(), start, point)
        long = ~self._falls(start, point) | (point.slope > -self.curvature * start.slope)
        short = ~long & (point.slope < self.curvature * start.slope)
        trials = trials + 1
        accepted = ~long & (~short | (trials >= TRIALS))  # a line that falls and falls: as far down as was seen
        low, high = _either(short, point, low), _either(long, point, high)

        moved = accepted.unsqueeze(-1)
        z_new, r_new = torch.where(moved, trial, z), torch.where(moved, r_trial, r)
        lost = ~accepted & ((trials >= TRIALS) | ~(high.step - low.step > 0))
        turns = accepted | lost
        state = LineState(d, _between(low, high), start, low, high, trials, gain, memory)
        if finished(~turns):
            return z_new, r_new, state
        memory = self.updated(
            memory, torch.where(moved, trial - z, 0), torch.where(moved, r_trial - r, 0), r_new, accepted
        )
        memory = self.forget(memory, z_new, lost)
        line = self._line(memory, z_new, torch.where(accepted, point.value, start.value), r_new, gain)
        state = LineState(
            torch.where(turns.unsqueeze(-1), line.d, d),
            torch.where(turns, line.step, state.step),
            _either(turns, line.start, start),
            _either(turns, line.low, low),
            _either(turns, line.high, high),
            torch.where(turns, 0, trials),
            gain,
            line.memory,
        )
        return z_new, r_new, state

    def estimate(self, z: Tensor, r: Tensor, state: LineState) -> Estimate:
        """The step that the method's model of the Hessian makes; without one, what the curvature along the last lines says."""
        own, known = self.correction(state.memory, state.d, r)
        return Estimate(torch.where(known.unsqueeze(-1), own, state.gain.unsqueeze(-1) * r), 0.0)

    def correction(self, memory: Any, d: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """The step to the minimum of the method's model, (B, n), and for which systems it has one, (B,)."""
        return d, torch.zeros_like(d[:, 0], dtype=torch.bool) if d.shape[-1] else d.new_zeros(len(d), dtype=torch.bool)

    def merit(self, state: LineState) -> Tensor:
        """The objective at z, (B,)."""
        return state.start.value

    def _falls(self, start: Point, point: Point) -> Tensor:
        """Whether the objective is sufficiently lower; False where it is not finite."""
        lower = point.value <= start.value + SUFFICIENT * point.step * start.slope
        level = point.value <= start.value + rounding(start.value)
        return (lower | (level & (point.slope <= (2 * SUFFICIENT - 1) * start.slope))) & point.slope.isfinite()

    def _line(self, memory: Any, z: Tensor, value: Tensor, r: Tensor, gain: Tensor) -> LineState:
        """The line from z in the direction of the method, or that of steepest descent where the method's does not descend."""
        d, step = self.direction(memory, r)
        slope = dot(d.detach(), r.detach())
        norm = torch.linalg.vector_norm(r.detach(), dim=-1)
        size = torch.linalg.vector_norm(d.detach(), dim=-1)
        descends = (slope < -torch.finfo(r.dtype).eps * size * norm) & slope.isfinite() & step.isfinite() & (step > 0)
        uphill = ~descends & (step > 0)
        if not finished(~uphill):
            memory = self.forget(memory, z, uphill)
        d = torch.where(descends.unsqueeze(-1), d, -r)
        slope = torch.where(descends, slope, -norm.square())
        step = torch.where(descends, step, _first_length(z.detach(), norm))
        start = Point(torch.zeros_like(step), value, slope)
        high = Point(torch.full_like(step, torch.inf), value, slope)
        return LineState(d, step, start, start, high, torch.zeros_like(step, dtype=torch.int64), gain, memory)


def _first_length(z: Tensor, norm: Tensor) -> Tensor:
    """How many gradients of that norm to try first, (B,): so many as are a small part of z, which no unit of the objective changes.

    Source: Hager and Zhang (2005), section 5 (ψ₀); from 0, which says nothing of the size of z, as far as 1.
    """
    size = torch.linalg.vector_norm(z, dim=-1)
    return torch.where(size > 0, FIRST * size, 1) / norm


def _gain(gain: Tensor, z: Tensor, step: Tensor, d: Tensor, start: Point, point: Point) -> Tensor:
    """With what the curvature between two points of a line adds; as it was where there is none, or the points are far apart."""
    seen = step * dot(d, d) / (point.slope - start.slope)
    near = step * torch.linalg.vector_norm(d, dim=-1) <= NEAR * torch.linalg.vector_norm(z, dim=-1)
    seen = torch.where(near & (point.slope > start.slope) & seen.isfinite(), seen, gain)
    return torch.where(gain < torch.inf, seen.maximum(FADING * gain), seen)


def _either(rows: Tensor, new: Point, old: Point) -> Point:
    return Point(*(torch.where(rows, a, b) for a, b in zip(new, old, strict=True)))


def _between(low: Point, high: Point) -> Tensor:
    """The next length to try: the minimum of the cubic through both ends, kept away from them, a tenth of the way where the far
    end is not finite; ten times the longest as long as nothing was too long.

    Source: Nocedal and Wright (2006), eq. 3.59.
    """
    width = high.step - low.step
    unit = low.slope.abs().maximum(high.slope.abs())  # whose square could overflow
    left, right = low.slope / unit, high.slope / unit
    mean = left + right - 3 * (high.value - low.value) / unit / width
    root = (mean.square() - left * right).sqrt()
    part = 1 - (right + root - mean) / (right - left + 2 * root)
    part = torch.where(part.isfinite(), part, 0.5).clamp(0.1, 0.9)
    part = torch.where((high.value + high.slope).isfinite(), part, 0.1)
    return torch.where(high.step.isfinite(), low.step + part * width, 10 * low.step)
