"""Following a branch from s0 until it gets to s1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from torchimplicit.problems.curve import CORRECTIONS, Curve, Point
from torchimplicit.problems.root import root
from torchimplicit.solution import SolveInfo
from torchimplicit.solvers import Chandrupatla, Newton, NewtonKrylov
from torchimplicit.solvers.auto import DENSE_LIMIT
from torchimplicit.solvers.equations import Solver
from torchimplicit.stopping import Status

FIRST_STEP = 0.05
LONGEST = 0.1  # change of s in a step, as a part of the way: what happens within less may be passed unseen
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
    """The branch from near z at s0 to where it gets to s1 after so many folds at least.

    The next point is predicted by the tangent and how it has turned in the last step.
    """
    dense = curve.layout.size < DENSE_LIMIT
    solver: Solver = Newton() if dense else NewtonKrylov()
    value, info = root(curve.g, z, (curve.s0, *curve.args), solver=solver, max_steps=CORRECTIONS, on_failure="ignore")
    y = torch.cat([curve.layout.flatten(value)[0], curve.s0.new_zeros(1)])
    path = Path(curve, info, [y])
    if not info.converged:
        path.problem = "the start was not corrected to a solution at s0"
        path.advice = f"Start nearer to a solution at s0. {info.message}"
        return path
    curve = curve.with_units(y)
    here = curve.start(y)
    if here is None:
        return path.failed("the branch turns back, or meets another, at s0 itself")
    curve = curve.with_units(2 * FIRST_STEP * here.tangent / here.tangent[-1])
    here = here._replace(tangent=curve.unit(here.tangent))
    shortest = torch.finfo(y.dtype).eps ** 0.5 / 16
    h, turning, crossed = FIRST_STEP, torch.zeros_like(y), False
    while len(path.points) < max_points:
        h = min(h, LONGEST / max(abs(float(here.tangent[-1])), 1e-9))
        there, strain = curve.step(here, h, here.y + h * here.tangent + h**2 / 2 * turning)
        if not strain <= BROKEN or there.sign != here.sign:
            crossed = crossed or strain <= BROKEN
            h = h / 2
            if h >= shortest:
                continue
            leap = _across(curve, here, shortest) if crossed else None
            if leap is None:
                return path.failed("steps became too short")
            there, h = leap
            path.crossings.append(curve.s(here.y))
        if _passes(curve, here, there, path, folds):
            return path
        turning, crossed = (there.tangent - here.tangent) / h, False
        h = h / min(max(strain, 0.5), 2.0)
        path.curve = curve = curve.with_units(there.y)
        here = there._replace(tangent=curve.unit(there.tangent))
        path.points.append(here.y)
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


def _passes(curve: Curve, here: Point, there: Point, path: Path, folds: int) -> bool:
    """Whether s1 lies between two points. Folds on the way, and where to start at s1, are noted."""

    def at(part: float) -> tuple[Tensor, Tensor]:
        return curve.between(here, there, part)

    stops = [(0.0, here.y), (1.0, there.y)]
    if float(here.tangent[-1] * there.tangent[-1]) < 0:
        part = _part(lambda part: at(part)[1][-1], 0.0, 1.0, here.y)
        stops.insert(1, (part, at(part)[0]))
    for i, ((a, one), (b, other)) in enumerate(pairwise(stops)):
        if i > 0:
            path.folds.append(curve.s(one))
        if len(path.folds) >= folds and float((one[-1] - 1) * (other[-1] - 1)) <= 0:
            path.end = at(_part(lambda part: at(part)[0][-1] - 1, a, b, here.y))[0]
            return True
    return False


def _part(of: Callable[[float], Tensor], a: float, b: float, like: Tensor) -> float:
    """Where between a and b a function changes its sign."""
    middle = like.new_tensor((a + b) / 2)
    return float(root(lambda x: of(float(x)), middle, solver=Chandrupatla(a, b), on_failure="ignore").value)
