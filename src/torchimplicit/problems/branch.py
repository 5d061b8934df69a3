"""Following a branch from s0 until it gets to s1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchimplicit.problems.curve import CORRECTIONS, Corrected, Curve, Point
from torchimplicit.problems.root import root
from torchimplicit.solution import SolveInfo
from torchimplicit.solvers import Chandrupatla, Newton, NewtonKrylov
from torchimplicit.solvers.auto import FORMED_LIMIT
from torchimplicit.solvers.method import Method
from torchimplicit.status import Status

FIRST_STEP = 0.05
LONGEST = 0.1  # change of s in a step, as a part of the way: what happens within less may be passed unseen
WIDEST = 0.5  # length of a step, in the largest z so far
BROKEN = 2.0  # the strain of a step that is refused


@dataclass
class Path:
    """The points y that were found, the values of s at folds and crossings, and what went wrong, if s1 was not reached.

    end : where to start at s1; None where the branch did not get there.
    """

    curve: Curve
    info: SolveInfo
    points: list[Tensor]
    folds: list[Tensor] = field(default_factory=list)
    crossings: list[Tensor] = field(default_factory=list)
    end: Tensor | None = None
    problem: str = ""
    advice: str = "It may turn back before s1 (see branch.folds), end, or need a larger max_points."

    def failed(self, problem: str) -> Path:
        """The facts of the start, as those of a branch that ended too early."""
        self.problem = problem
        ended = torch.full_like(self.info.status, Status.MAX_STEPS)
        self.info = replace(self.info, converged=torch.zeros_like(self.info.converged), status=ended)
        return self


def follow(curve: Curve, z: Any, folds: int, max_points: int) -> Path:
    """The branch from near z at s0 to where it gets to s1, after so many folds at least.

    A step is predicted by the tangent and by how it turned in the last step. It is refused, and halved, where its strain is too large
    or its orientation is another. Where the latter is so down to the shortest step, branches cross here, to working precision.
    """
    dense = curve.layout.size < FORMED_LIMIT
    solver: Method = Newton() if dense else NewtonKrylov()
    value, info = root(curve.g, z, (curve.s0, *curve.args), solver=solver, max_steps=CORRECTIONS, on_failure="ignore")
    y = torch.cat([curve.layout.flatten(value)[0], curve.s0.new_zeros(1)])
    path = Path(curve, info, [y])
    if not info.converged:
        path.problem = "the start was not corrected to a solution at s0"
        path.advice = f"Start nearer to a solution at s0. {info.message}"
        return path
    path.curve = curve = curve.with_units(y)
    slope = curve.slope(y)
    if slope is not None:
        path.curve = curve = curve.with_units(2 * FIRST_STEP * slope)
    here = None if slope is None else curve.first(y, curve.unit(slope))
    if here is None:
        path.advice = "Start at another s0."
        return path.failed("the branch turns back, or another crosses it, at s0 itself")
    shortest = torch.finfo(y.dtype).eps ** 0.5 / 16
    h, turning, crossed = FIRST_STEP / float(here.tangent[-1]), torch.zeros_like(y), False
    while len(path.points) < max_points:
        h = min(h, WIDEST, LONGEST / max(abs(float(here.tangent[-1])), shortest))
        there, strain = curve.step(here, h, here.y + h * here.tangent + h**2 / 2 * turning)
        left = folds - len(path.folds)
        passed = _passed(curve, here, there, left) if strain <= BROKEN else None
        if passed is None or there.sign != here.sign:
            crossed = crossed or passed is not None
            h = h / 2
            if h >= shortest:
                continue
            leap = _across(curve, here, shortest) if crossed else None
            if leap is None:
                return path.failed("steps became too short")
            there, h = leap
            strain, passed = 1.0, _passed(curve, here, there, left) or Passed([])
            path.crossings.append(curve.s(here.y))
        path.folds += map(curve.s, passed.folds)
        path.end = passed.end
        if path.end is not None:
            return path
        path.points.append(there.y)
        turning, crossed = (there.tangent - here.tangent) / h, False
        h = h / min(max(strain, 0.5), 2.0)
        path.curve = curve = curve.with_units(there.y)
        scale = curve.length(there.tangent)  # lengths may have become shorter
        here, h, turning = there._replace(tangent=there.tangent / scale), h * scale, turning / scale**2
    return path.failed("max_points was reached")


def _across(curve: Curve, here: Point, shortest: float) -> tuple[Point, float] | None:
    """The point straight on beyond a crossing that no step is short enough to resolve, by the shortest step that rounding lets
    be seen as a good one; and its length."""
    h = 16 * shortest
    while h < LONGEST:
        there, strain = curve.step(here, h, here.y + h * here.tangent)
        if strain <= 1 and there.sign != here.sign:
            return there, h
        h = 4 * h
    return None


class Passed(NamedTuple):
    """The folds on the way from one point to the next, and the point at s1, if the way goes there."""

    folds: list[Tensor]
    end: Tensor | None = None


def _passed(curve: Curve, a: Point, b: Point, folds: int) -> Passed | None:
    """What lies between two points; s1 counts after so many folds. None where something should lie there, and no point does: then
    the two belong to different branches."""
    marks = [(0.0, a.y), (1.0, b.y)]
    slopes = [float(point.tangent[-1]) for point in (a, b)]
    if slopes[0] * slopes[1] < 0:
        part, fold = _zero(curve, a, b, 0.0, 1.0, lambda found: found.tangent[-1])
        if fold is None or not abs(float(fold.tangent[-1])) < 0.1 * max(map(abs, slopes)):
            return None
        marks.insert(1, (part, fold.y))
    for passed, ((start, one), (stop, other)) in enumerate(pairwise(marks)):
        if passed >= folds and float((one[-1] - 1) * (other[-1] - 1)) <= 0:
            _, end = _zero(curve, a, b, start, stop, lambda found: found.y[-1] - 1)
            return None if end is None else Passed([y for _, y in marks[1 : 1 + passed]], end.y)
    return Passed([y for _, y in marks[1:-1]])


def _zero(
    curve: Curve, a: Point, b: Point, start: float, stop: float, of: Callable[[Corrected], Tensor]
) -> tuple[float, Corrected | None]:
    """The part of the way from one point to another at which something changes its sign, and the point there."""

    def at(part: Tensor) -> Tensor:
        found = curve.between(a, b, float(part))
        return torch.full_like(part, torch.nan) if found is None else of(found)

    middle = a.y.new_tensor((start + stop) / 2)
    part = float(root(at, middle, solver=Chandrupatla(start, stop), on_failure="ignore").value)
    return part, curve.between(a, b, part)
