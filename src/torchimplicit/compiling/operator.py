"""The operator that stands for a solve while torch.compile reads the code around it.

Dynamo reads the user's function alone, as the operator's subgraph, with every tensor that it uses as an operand. When the graph is
lowered, the operator runs the solve itself, in plain Python, on tensors without values: what that computes takes its place, its loops
as ``while_loop``, its derivative as that of the :class:`~torchimplicit.adjoints.function.ImplicitFunction`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from torchimplicit import linear, solvers
from torchimplicit.adjoints import Implicit
from torchimplicit.compiling.entries import ENTRY_POINTS, LIKE_Z
from torchimplicit.graph.explicit import FACTS, Call, Explicit, transform_within, with_bounds
from torchimplicit.private import pytree
from torchimplicit.private.dynamo import BaseHOP, after_autograd, given_views, solving
from torchimplicit.solution import SolveInfo


class _SolveOperator(BaseHOP):
    def __init__(self) -> None:
        super().__init__("torchimplicit_solve")

    def __call__(self, subgraph: Any, *operands: Any, **spec: Any) -> Any:
        if not isinstance(subgraph, GraphModule):  # Dynamo could not read it, and has left this call to plain code
            return solve_plainly(subgraph, operands, spec)
        return after_autograd(lambda *operands: solve(Call(subgraph, operands, spec["unknowns"]), spec), operands)


solve_operator = solving(_SolveOperator(), transform_within)


class _BlackBoxOperator(BaseHOP):
    """A solver of somebody else's: either Dynamo can read the whole of it, or it is left to plain code as a whole."""

    def __init__(self) -> None:
        super().__init__("torchimplicit_black_box")

    def __call__(self, solver: Callable[..., Any], *operands: Any) -> Any:
        return solver(*operands) if isinstance(solver, GraphModule) else torch.compiler.disable(solver)(*operands)


black_box_operator = given_views(_BlackBoxOperator())


def _made(description: Any) -> Any:
    if isinstance(description, torch.SymFloat):  # Dynamo lets numbers change; for a solve they are part of the question
        return float(description)
    if isinstance(description, torch.SymInt):
        return int(description)
    if not isinstance(description, tuple):
        return description
    name, *parts = description
    if name == "tuple":
        return tuple(_made(part) for part in parts)
    classes = [getattr(place, name) for place in (solvers, linear) if hasattr(place, name)]
    cls = Implicit if name == "Implicit" else classes[0]
    given = {f.name for f in dataclasses.fields(cls) if f.init and f.name != "geometry"}
    return cls(**{key: _made(value) for key, value in parts if key in given})


@torch.compiler.disable
def solve_plainly(function: Callable[..., Any], leaves: Sequence[Tensor], spec: dict[str, Any]) -> tuple[Any, Any]:
    """What the operator does where its function is no graph."""
    options = {name: _made(value) for name, value in spec["options"]}
    first = spec["unknowns"] + FACTS
    z0: Any = leaves[0] if len(leaves) == 1 else list(leaves)
    if options.get("bounds") is not None:
        options["bounds"] = with_bounds(function(*leaves)[0][first:], len(leaves))[1:]

    def fn(z: Any) -> Any:
        results, aux = function(*([z] if isinstance(z, Tensor) else z))
        values = results[first:]
        out = list(values) if spec["entry"] in LIKE_Z and not isinstance(z, Tensor) else values[0]
        return (out, aux) if options.get("has_aux", False) else out

    z, info = ENTRY_POINTS[spec["entry"]](fn, z0, **options)
    return (*pytree.tree_leaves(z), *_facts(info)), info.aux


def _facts(info: SolveInfo) -> tuple[Tensor, ...]:
    return info.status, info.steps, info.residual, info.error, info.evaluations, info.products


@torch.compiler.disable
def solve(call: Call, spec: dict[str, Any]) -> tuple[Any, ...]:
    """What the operator does: the entry point itself, for a function of explicit tensors."""
    entry, unknowns = spec["entry"], spec["unknowns"]
    options = {name: _made(value) for name, value in spec["options"]}
    leaves, tensors = call.tensors[:unknowns], call.tensors[unknowns:]
    fn = Explicit(call, options.get("has_aux", False), entry in LIKE_Z, options.get("bounds") is not None)
    z0: Any = leaves[0] if unknowns == 1 else leaves
    z, info = ENTRY_POINTS[spec["entry"]](fn, z0, tuple(tensors), **options)
    return (*pytree.tree_leaves(z), *_facts(info), *[None] * fn.values, *(info.aux or ()))
