"""A function that a loop in a graph calls again and again: what does not depend on its argument is computed before the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from torchimplicit.graph.divided import divided
from torchimplicit.graph.evaluation import evaluate
from torchimplicit.graph.loop import Operands
from torchimplicit.private.operators import writes


def hoisted(fn: Callable[..., Tensor], x: Tensor, others: Sequence[Any]) -> tuple[Callable[[Tensor], Tensor], Operands]:
    """``fn(x, *others)`` as a function of x, and what it then uses of what has been computed here.

    A vector-Jacobian product, say: its forward evaluation is done once, and each product in the loop is a backward alone.
    """
    from torchimplicit.private.dynamo import graph_of  # which Dynamo is imported for

    graph = graph_of(fn, (x, *others))
    if graph is None or any(writes(node.target) for node in graph.graph.nodes if node.op == "call_function"):
        operands = Operands(others)
        return lambda x: fn(x, *operands.tensors), operands
    return _divided(graph, x, others)


def _divided(graph: GraphModule, x: Tensor, others: Sequence[Any]) -> tuple[Callable[[Tensor], Tensor], Operands]:
    *nodes, output = graph.graph.nodes
    first, *given = [node for node in nodes if node.op == "placeholder"]
    (result,) = output.all_input_nodes
    inside, border = divided(graph, nodes, [first], dict(zip(given, others, strict=True)), [result])
    operands = Operands(
        list(border.values())
    )  # of what was computed: queries, keys and values are views of one tensor, say

    def rest(x: Tensor) -> Tensor:
        values = {first: x, **dict(zip(border, operands.tensors, strict=True))}
        evaluate(graph, inside, values)
        found: Tensor = values[result]
        return found

    return rest, operands
