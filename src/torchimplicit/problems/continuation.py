"""Branches of solutions: z*(s) with g(z*, s) = 0, followed from a value of s where it is known to one where it is wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.adjoints import Adjoint
from torchimplicit.linear import Auto
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.parameters import check_count
from torchimplicit.problems.pose import check_adjoint, check_args
from torchimplicit.problems.root import root
from torchimplicit.randomness import Randomness, frozen
from torchimplicit.solution import SolveInfo
from torchimplicit.solvers import Chandrupatla, Newton, NewtonKrylov, resolve
from torchimplicit.solvers.auto import DENSE_LIMIT
from torchimplicit.solvers.equations import Solver
from torchimplicit.state import Layout, describe, same_as_z
from torchimplicit.stopping import OnFailure, Status, check_policy, tell
from torchimplicit.tolerance import Tolerance
from torchimplicit.transforms import inside_functorch
from torchimplicit.uncompiled import uncompiled

FIRST_STEP = 0.05
LONGEST = 0.25  # change of s in a step, as a part of the way
CORRECTIONS = 8  # Newton steps after which a step was too long
PLANNED = 3  # that many are wanted
STRAIGHT = 0.9  # smallest cosine of the angle between the tangents at both ends of a step


class Branch(NamedTuple):
    """The points of a branch, in the order in which they were found, detached.

    s : (K,). z : like z0, with K in front. folds : the values of s at which the branch turns back.
    """

    s: Tensor
    z: Any
    folds: Tensor


class Continuation(NamedTuple):
    """``z, info, branch = ti.continuation(...)``: z* at s1, the facts of its solve, and the way there."""

    value: Any
    info: SolveInfo
    branch: Branch


@uncompiled
def continuation(
    g: Callable[..., Any],
    z0: Any,
    s0: float | Tensor,
    s1: float | Tensor,
    args: tuple[Any, ...] = (),
    *,
    folds: int = 0,
    max_points: int = 500,
    solver: str | Solver | None = None,
    adjoint: Adjoint | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    randomness: Randomness = "error",
    on_failure: OnFailure = "warn",
) -> Continuation:
    """Follow z*(s) with g(z*, s, *args) = 0 from s0 to s1, round folds where it has some.

    For equations that no start near at hand solves at s1 (a homotopy from an easy problem at s0 to a hard one), for the
    solution of several that belongs to a known one, and to find where a branch ends.

    Each step goes along the tangent of the branch, by a length h in (rms(z), (s − s0)/(s1 − s0)), and comes back to it by
    Newton's method in the plane normal to the tangent, so that nothing is singular where s turns back (pseudo-arclength; Keller,
    1977; Allgower and Georg, Introduction to Numerical Continuation Methods, 2003, chapters 2 and 6). h grows while few
    corrections are needed, and shrinks where they fail or the tangent turns by more than 25 degrees. Where the tangent's part in s
    changes its sign, the fold is found by root finding in h, and so is the point at s1.

    Args:
        g: g(z, s, *args) -> like z, with s a 0-d tensor of z's real dtype.
        z0: near the solution at s0.
        s0, s1: numbers, or 0-d tensors. The gradient in s1 is that of z*.
        args: further arguments, any pytree.
        folds: s1 counts as reached after at least so many folds only (the upper branch of a fold: 1).
        max_points: of the branch, at most.
        randomness: "frozen": a g that draws random numbers draws the same ones along the whole branch and in the backward.
        solver, adjoint, rtol, atol, on_failure: as in :func:`torchimplicit.root`, for the solution at s1; ``on_failure`` is also
            for a branch that does not get there: then ``value`` is its last point (NaN under "nan"), without a gradient.

    Returns:
        ``Continuation(value, info, branch)``: z* at s1, differentiable in s1, args and every tensor that g uses.

    Raises:
        TypeError, ValueError: an argument does not fit; the message says what was passed and what was expected.
        RuntimeError: inside a ``torch.func`` transform, where no value may decide how the branch is followed.
        ConvergenceError: s1 was not reached under ``on_failure="raise"``.

    Example::

        z, info, branch = ti.continuation(lambda z, s: z**3 - z + s, torch.tensor(1.3), -1.0, 1.0)  # two folds on the way
    """
    if inside_functorch():
        raise RuntimeError(
            "continuation decides by values how it follows a branch, which no torch.func transform (vmap, grad, jacrev, ...) "
            "allows. Call it outside, and take its result as the start of ti.root inside."
        )
    if not callable(g):
        raise TypeError(f"continuation: the first argument must be a function of (z, s, *args); got {describe(g)}.")
    check_args(args)
    check_policy(on_failure)
    check_adjoint(adjoint)
    check_count("continuation: max_points", max_points)
    if isinstance(folds, bool) or not isinstance(folds, int) or folds < 0:
        raise ValueError(f"continuation: folds must be an integer >= 0, how many lie before s1; got {folds!r}.")
    layout = Layout.of(z0, 0)
    Tolerance.of(rtol, atol, layout.tolerance_dtype)
    resolve(solver, False, layout.batch, layout.size)
    g = frozen(g, randomness, layout.device)
    first, last = (_parameter(s, name, layout) for s, name in ((s0, "s0"), (s1, "s1")))
    if first == last:
        raise ValueError(
            f"continuation: s0 and s1 must be two different numbers in z's dtype; got {s0!r} and {s1!r}, for z a "
            f"{describe(pytree.tree_leaves(z0)[0])}. At s0 itself ti.root finds the solution."
        )
    with torch.no_grad():
        curve = Curve(g, args, layout, first, last)
        path = _follow(curve, layout.flatten(z0).detach()[0], folds, max_points)
        s = torch.stack([curve.s(y) for y in path.points])
        found = [curve.z(y) for y in path.points]
    if path.start is None:
        value, info = found[-1], path.info
        tell(
            f"The branch was not followed to s1 = {float(last):.6g}: {path.problem} after {len(s)} points, at s = "
            f"{float(s[-1]):.6g}, with {len(path.folds)} folds on the way. {path.advice}",
            on_failure,
        )
        if on_failure == "nan":
            value = pytree.tree_map(lambda leaf: torch.full_like(leaf, torch.nan), value)
    else:
        options: dict[str, Any] = {
            "solver": solver,
            "adjoint": adjoint,
            "rtol": rtol,
            "atol": atol,
            "on_failure": on_failure,
        }
        end = s1.to(first) if isinstance(s1, Tensor) else last
        value, info = root(g, path.start, (end, *args), **options)
        s = torch.cat([s, last.reshape(1)])
        found.append(pytree.tree_map(Tensor.detach, value))
    points = pytree.tree_map(lambda *leaves: torch.stack(leaves), *found)
    return Continuation(value, info, Branch(s, points, torch.stack(path.folds) if path.folds else s[:0]))


def _parameter(s: Any, name: str, layout: Layout) -> Tensor:
    """A value of the parameter, 0-d and of z's real dtype, detached."""
    number = isinstance(s, (int, float)) and not isinstance(s, bool)
    scalar = isinstance(s, Tensor) and not (s.ndim or s.is_complex() or s.is_meta or s.dtype == torch.bool)
    if not (number or scalar):
        raise TypeError(f"continuation: {name} must be a real number, or a 0-d tensor; got {describe(s)}.")
    found = torch.as_tensor(s, dtype=layout.real_dtype, device=layout.device).detach()
    if not bool(found.isfinite()):
        raise ValueError(
            f"continuation: {name} must be finite; got {s!r}. A branch is followed over finite values only."
        )
    return found


@dataclass(frozen=True)
class Curve:
    """g(z, s) = 0 as a curve of points y = (z/√n, (s − s0)/(s1 − s0)) in n + 1 dimensions."""

    g: Callable[..., Any]
    args: tuple[Any, ...]
    layout: Layout
    s0: Tensor
    s1: Tensor

    def s(self, y: Tensor) -> Tensor:
        return self.s0 + y[-1] * (self.s1 - self.s0)

    def flat(self, y: Tensor) -> Tensor:
        return y[:-1] * (len(y) - 1) ** 0.5

    def z(self, y: Tensor) -> Any:
        return self.layout.unflatten(self.flat(y).unsqueeze(0))

    def in_plane(self, normal: Tensor, at: Tensor) -> Callable[[Tensor], Tensor]:
        """n + 1 equations for the point of the curve that is in a plane."""
        output = same_as_z(self.layout, "continuation: the function")

        def equations(y: Tensor) -> Tensor:
            z = self.layout.argument(self.flat(y).unsqueeze(0))
            return torch.cat([output(self.g(z, self.s(y), *self.args))[0], (normal @ (y - at)).reshape(1)])

        return equations

    def corrected(self, y: Tensor, normal: Tensor) -> tuple[Tensor, SolveInfo]:
        """The point of the curve in the plane through y."""
        solver: Solver = Newton() if len(y) <= DENSE_LIMIT else NewtonKrylov()
        return root(self.in_plane(normal, y), y, solver=solver, max_steps=CORRECTIONS, on_failure="ignore")

    def along(self, y: Tensor, t: Tensor, length: Tensor | float) -> Tensor:
        """The point of the curve at a distance from y along its tangent."""
        return self.corrected(y + length * t, t)[0]

    def tangent(self, y: Tensor, normal: Tensor) -> Tensor:
        """The unit tangent at a point of the curve, on the same side as ``normal``."""
        plane = self.in_plane(normal, y)
        jacobian = Jacobian(lambda y: plane(y[0]).unsqueeze(0), y.unsqueeze(0))
        right = torch.zeros_like(jacobian.value)
        right[0, -1] = 1
        direction = Auto().factorize(jacobian).solve(right)[0]
        return direction / torch.linalg.vector_norm(direction)


class Path(NamedTuple):
    """The points y that were found, the values of s at folds, and where to start at s1 (None: not reached, with the problem)."""

    points: list[Tensor]
    folds: list[Tensor]
    start: Any
    info: SolveInfo
    problem: str = ""
    advice: str = "It may turn back before s1 (see branch.folds), end, or need a larger max_points."


def _follow(curve: Curve, z: Tensor, folds: int, max_points: int) -> Path:
    y = torch.cat([z / max(1, len(z)) ** 0.5, z.new_zeros(1)])
    forward = torch.zeros_like(y)
    forward[-1] = 1
    y, info = curve.corrected(y, forward)
    points, turns = [y], list[Tensor]()
    if not info.converged:
        advice = f"Start nearer to a solution at s0. {info.message}"
        return Path(points, turns, None, info, "the start was not corrected to a solution at s0", advice)
    t = curve.tangent(y, forward)
    h = FIRST_STEP
    while len(points) < max_points:
        if not h > torch.finfo(y.dtype).eps ** 0.5:
            return Path(points, turns, None, _failed(info), "steps became too short")
        h = min(h, LONGEST / max(abs(float(t[-1])), 1e-9))
        new, info = curve.corrected(y + h * t, t)
        direction = curve.tangent(new, t) if info.converged else t
        if not info.converged or not float(direction @ t) > STRAIGHT:
            h = h / 4
            continue
        passed = [(0.0, y), (h, new)]
        if float(direction[-1] * t[-1]) < 0:
            length = _length(lambda length: curve.tangent(curve.along(y, t, length), t)[-1], 0.0, h, y)  # noqa: B023
            fold = curve.corrected(curve.along(y, t, length), t)[0]
            passed.insert(1, (length, fold))
        for i, ((a, before), (b, after)) in enumerate(pairwise(passed)):
            if i > 0:
                turns.append(curve.s(before))
            if len(turns) >= folds and float((before[-1] - 1) * (after[-1] - 1)) <= 0:
                length = _length(lambda length: curve.along(y, t, length)[-1] - 1, a, b, y)  # noqa: B023
                return Path(points, turns, curve.z(curve.along(y, t, length)), info)
        h = h * min(2.0, max(0.5, 2 ** ((PLANNED - int(info.steps)) / 2)))
        y, t = new, direction
        points.append(y)
    return Path(points, turns, None, _failed(info), "max_points was reached")


def _length(of: Callable[[Tensor | float], Tensor], a: float, b: float, like: Tensor) -> float:
    """Where between a and b a function of the length of a step changes its sign."""
    found, _ = root(of, like.new_tensor((a + b) / 2), solver=Chandrupatla(a, b), on_failure="ignore")
    return float(found)


def _failed(info: SolveInfo) -> SolveInfo:
    """The facts of the last correction, as those of a branch that ended too early."""
    return SolveInfo(
        torch.zeros_like(info.converged),
        torch.full_like(info.status, Status.MAX_STEPS),
        info.steps,
        info.residual,
        info.error,
        info.evaluations,
        info.products,
    )
