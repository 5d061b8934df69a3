"""Branches of solutions: z*(s) with g(z*, s) = 0, followed from a value of s where it is known to one where it is wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchimplicit.adjoints import Adjoint
from torchimplicit.autograd.transforms import inside_functorch
from torchimplicit.capture.randomness import Randomness, frozen
from torchimplicit.compiling.entry import entry_point
from torchimplicit.layout import Layout, describe
from torchimplicit.parameters import check_args, check_count
from torchimplicit.private import pytree
from torchimplicit.problems.branch import follow
from torchimplicit.problems.curve import Curve
from torchimplicit.problems.pose import check_adjoint
from torchimplicit.problems.root import Root, root
from torchimplicit.solution import SolveInfo
from torchimplicit.solvers import resolve
from torchimplicit.solvers.method import Method
from torchimplicit.status import OnFailure, announce, check_policy
from torchimplicit.tolerance import Tolerance


class Branch(NamedTuple):
    """The points of a branch, in the order in which they were found, detached.

    s : (K,).
    z : like z0, with K in front.
    folds : the values of s at which the branch turns back.
    crossings : the values of s at which another branch crosses it.
    """

    s: Tensor
    z: Any
    folds: Tensor
    crossings: Tensor


class Continuation(NamedTuple):
    """``z, info, branch = ti.continuation(...)``: z* at s1, the facts of its solve, and the way there."""

    value: Any
    info: SolveInfo
    branch: Branch


@entry_point
def continuation(
    g: Callable[..., Any],
    z0: Any,
    s0: float | Tensor,
    s1: float | Tensor,
    args: tuple[Any, ...] = (),
    *,
    folds: int = 0,
    max_points: int = 500,
    solver: str | Method | None = None,
    adjoint: Adjoint | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    randomness: Randomness = "error",
    on_failure: OnFailure = "warn",
) -> Continuation:
    """Follow z*(s) with g(z*, s, *args) = 0 from s0 to s1, round folds where it has some.

    For equations that no start near at hand solves at s1 (a homotopy from an easy problem at s0 to a hard one), for the
    solution of several that belongs to a known one, and to find where a branch ends.

    Each step goes along the tangent of the branch, as it has turned so far, by a length h in (z, s), both without units (z in
    the largest rms(z) so far, s as a part of the way), and comes back to it by Newton's method in the plane normal to the tangent, so
    that nothing is singular where s turns back (pseudo-arclength; Keller, 1977; Allgower and Georg, Introduction to Numerical
    Continuation Methods, 2003, chapters 2 and 6). Folds, where s turns back, are found by root finding in h, and so is the point at s1.

    So that it stays on its branch where others come near, a step is halved where the point found is far from the predicted one beside
    h, where Newton's method contracts slowly, where the tangents at its ends and the chord between do not fit one smooth curve, and
    where the determinant of the Jacobian with the tangent below changes its sign, which it does not do along one branch (beyond
    n = 255, where there is no determinant, the solution of a linear system with the same matrix stands for it). Where the sign changes
    however short the step is, branches cross: the smooth one is followed straight on, which is said, and s is in ``branch.crossings``.
    A branch that in less than a tenth of the way goes far off and comes back exactly to where another began may be taken for that.

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
        ConvergenceError: under ``on_failure="raise"``, s1 was not reached, the solver left the branch there, or branches cross on
            the way.

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
    resolve(solver, Root(), layout)
    g = frozen(g, randomness, layout.device)
    first, last = (_parameter(s, name, layout) for s, name in ((s0, "s0"), (s1, "s1")))
    if first == last:
        raise ValueError(
            f"continuation: s0 and s1 must be two different numbers in z's dtype; got {s0!r} and {s1!r}, for z a "
            f"{describe(pytree.tree_leaves(z0)[0])}. At s0 itself ti.root finds the solution."
        )
    units = (torch.finfo(layout.real_dtype).eps ** 0.5,) * len(layout.widths)
    with torch.no_grad():
        path = follow(Curve(g, tuple(args), layout, first, last, units), z0, folds, max_points)
        curve = path.curve
        s = torch.stack([curve.s(y) for y in path.points])
        found = [curve.z(y) for y in path.points]
    if path.end is None:
        value, info = found[-1], path.info
        announce(
            f"The branch was not followed to s1 = {float(last):.6g}: {path.problem} after {len(s)} points, at s = "
            f"{float(s[-1]):.6g}, with {len(path.folds)} folds on the way. {path.advice}",
            on_failure,
        )
        value = _spoilt(value, on_failure)
    else:
        options: dict[str, Any] = {
            "solver": solver,
            "adjoint": adjoint,
            "rtol": rtol,
            "atol": atol,
            "on_failure": on_failure,
        }
        end = s1.to(first) if isinstance(s1, Tensor) else last
        value, info = root(g, curve.z(path.end), (end, *args), **options)
        s = torch.cat([s, last.reshape(1)])
        found.append(pytree.tree_map(Tensor.detach, value))
        away = curve.distance(path.end, found[-1])
        if info.converged and away > torch.finfo(s.dtype).eps ** 0.25:
            announce(
                f"The solver has left the branch: its solution at s1 = {float(last):.6g} is {away:.3g} of the size of z away "
                f"from where the branch arrives. Pass a solver that stays near its start, as the default does.",
                on_failure,
            )
            value = _spoilt(value, on_failure)
        if path.crossings:
            announce(
                f"Another branch crosses this one at s = {float(path.crossings[0]):.6g}, or comes nearer than steps in {s.dtype} "
                f"resolve; it was followed straight on. All such values of s are in branch.crossings.",
                on_failure,
            )
    points = pytree.tree_map(lambda *leaves: torch.stack(leaves), *found)
    turns, crossings = (torch.stack(at) if at else s[:0] for at in (path.folds, path.crossings))
    return Continuation(value, info, Branch(s, points, turns, crossings))


def _spoilt(value: Any, on_failure: OnFailure) -> Any:
    """A value that is not the branch's at s1: NaN, if that is wanted."""
    return pytree.tree_map(lambda leaf: torch.full_like(leaf, torch.nan), value) if on_failure == "nan" else value


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
