"""Minima and fits under constraints: posed in the unknowns and the multipliers together, returned apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from torchimplicit.bounds import Output, WithLimits
from torchimplicit.capture.randomness import frozen
from torchimplicit.condition import Kind, held
from torchimplicit.constraints import Constrained, WithConstraints, constrained
from torchimplicit.layout import Layout, describe
from torchimplicit.linear.memory import Memory
from torchimplicit.private import pytree
from torchimplicit.problems.pose import pose_and_solve
from torchimplicit.programs.info import Dual
from torchimplicit.solution import Record, Solution, SolveInfo


@dataclass(repr=False)
class ConstrainedInfo(SolveInfo):
    """The facts of a solve under constraints.

    dual : the multipliers, differentiable like z.
    """

    dual: Dual | None = None


def _flatten(info: ConstrainedInfo) -> tuple[list[Any], tuple[tuple[str, ...], Record]]:
    facts = {field.name: getattr(info, field.name) for field in fields(info) if field.name != "record"}
    facts = {name: fact for name, fact in facts.items() if fact is not None}
    return list(facts.values()), (tuple(facts), info.record)


def _unflatten(children: Iterable[Any], context: tuple[tuple[str, ...], Record]) -> ConstrainedInfo:
    names, record = context
    return ConstrainedInfo(**dict(zip(names, children, strict=True)), record=record)


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
    sparsity: Any,
    **options: Any,
) -> Solution:
    """The solution z, with the multipliers as ``info.dual``."""
    if not (
        sparsity is None
        or isinstance(sparsity, Memory)
        or (isinstance(sparsity, str) and sparsity in ("detect", "off"))
    ):
        raise ValueError(
            "constraints: sparsity= is 'detect', 'off' or a ti.linear.Memory here, for the matrix is that of the unknowns and the "
            f"multipliers together; got {describe(sparsity)}."
        )
    kind, fn, w0, args, batched = constrained(free, fn, z0, args, constraints, bounds, batched, has_aux, batch_ndim)
    device = Layout.of(z0, batch_ndim).device
    fn = frozen(
        fn, options["randomness"], device
    )  # here, for the forces of bounds are those of the same random numbers
    watch = None if callback is None else lambda step, w, residual: callback(step, w[0], residual)
    given = {
        "sparsity": sparsity,
        "batched": batched,
        "has_aux": has_aux,
        "batch_ndim": batch_ndim,
        "callback": watch,
        **options,
    }
    flat = WithLimits(WithConstraints(output))
    w, info = pose_and_solve(kind, fn, w0, args, flat, **given)
    z, equality, inequality = w
    of_bounds = () if bounds is None else _forces(kind, lambda w: fn(w, *args), w, flat, has_aux, batch_ndim)
    facts = {field.name: getattr(info, field.name) for field in fields(info)}
    return Solution(z, ConstrainedInfo(**facts, dual=Dual(inequality, equality, of_bounds)))


def _forces(kind: Constrained, fn: Callable[[Any], Any], w: Any, output: Output, has_aux: bool, batch_ndim: int) -> Any:
    """−∇_z L in those unknowns that their bounds hold, like z: what the bounds have to hold against."""
    layout = Layout.of(w, batch_ndim)
    flatten = output(layout, f"{kind.name}: the function")

    def seen(w: Tensor) -> Tensor:
        out = fn(layout.argument(w))
        return flatten(out[0] if has_aux else out)

    slope, flat, lower, upper = kind.slope_and_limits(seen, layout.flatten(w))
    at_bound = torch.stack(held(slope.detach(), flat.detach(), lower.detach(), upper.detach())).any(0)
    return layout.unflatten(torch.where(at_bound, -slope, 0))[0]
