"""Minima and fits under constraints: posed in the unknowns and the multipliers together, returned apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from torchimplicit.bounds import Output, WithLimits
from torchimplicit.condition import Kind
from torchimplicit.constraints import WithConstraints, constrained
from torchimplicit.private import pytree
from torchimplicit.problems.pose import pose_and_solve
from torchimplicit.solution import Record, Solution, SolveInfo


class Dual(NamedTuple):
    """The multipliers of L = φ + inequality · h + equality · c, like what the constraints return; () where there are none.

    ``inequality`` is ≥ 0, and 0 where h < 0. ∇_z L is 0 where z is between its bounds, ≥ 0 at a lower and ≤ 0 at an upper one. Where
    the constraints become h ≤ ε and c = ε, the least φ changes by −inequality · ε and −equality · ε.
    """

    inequality: Any
    equality: Any


@dataclass(repr=False)
class ConstrainedInfo(SolveInfo):
    """The facts of a solve under constraints.

    dual : the multipliers, differentiable like z.
    """

    dual: Dual | None = None


_CHILDREN = tuple(field.name for field in fields(ConstrainedInfo) if field.name != "record")


def _flatten(info: ConstrainedInfo) -> tuple[list[Any], Record]:
    return [getattr(info, name) for name in _CHILDREN], info.record


def _unflatten(children: Iterable[Any], record: Record) -> ConstrainedInfo:
    return ConstrainedInfo(**dict(zip(_CHILDREN, children, strict=True)), record=record)


pytree.register_pytree_node(ConstrainedInfo, _flatten, _unflatten, serialized_type_name="torchimplicit.ConstrainedInfo")


def minimum_under_constraints(
    free: Kind,
    fn: Callable[..., Any],
    z0: Any,
    args: Any,
    constraints: Any,
    bounds: Any,
    output: Output,
    *,
    batched: Any,
    has_aux: bool,
    batch_ndim: int,
    callback: Callable[..., Any] | None,
    **options: Any,
) -> Solution:
    """The solution z, with the multipliers as ``info.dual``."""
    kind, fn, w0, args, batched = constrained(free, fn, z0, args, constraints, bounds, batched, has_aux, batch_ndim)
    watch = None if callback is None else lambda step, w, residual: callback(step, w[0], residual)
    given = {"batched": batched, "has_aux": has_aux, "batch_ndim": batch_ndim, "callback": watch, **options}
    (z, equality, inequality), info = pose_and_solve(kind, fn, w0, args, WithLimits(WithConstraints(output)), **given)
    facts = {field.name: getattr(info, field.name) for field in fields(info)}
    return Solution(z, ConstrainedInfo(**facts, dual=Dual(inequality, equality)))
