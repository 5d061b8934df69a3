"""A function that a loop in a graph calls again and again: what does not depend on its argument is computed before the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

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
    nodes = list(graph.graph.nodes)
    first, *given = [node for node in nodes if node.op == "placeholder"]
    (output,) = (node for node in nodes if node.op == "output")
    (result,) = output.all_input_nodes
    depends = {first}
    for node in nodes:
        if any(each in depends for each in node.all_input_nodes):
            depends.add(node)
    values: dict[Node, Any] = dict(zip(given, others, strict=True))
    before = Interpreter(graph, garbage_collect_values=False)
    before.env = values
    computed = [node for node in nodes if node not in depends and node not in values and node.op != "output"]
    for node in computed:
        values[node] = before.run_node(node)
    inside = [node for node in nodes if node in depends and node.op not in ("placeholder", "output")]
    used = {each for node in (*inside, output) for each in node.all_input_nodes if each not in depends}
    border = [node for node in nodes if node in used and isinstance(values[node], (Tensor, int, torch.SymInt))]
    constants = {node: values[node] for node in used if node not in border}  # the bodies of loops, say
    # What was computed may be views of one tensor (queries, keys and values, say); no two operands of a loop share memory.
    operands = Operands(
        [values[node].clone() if node in computed and isinstance(values[node], Tensor) else values[node] for node in border]
    )

    def rest(x: Tensor) -> Tensor:
        interpreter = Interpreter(graph, garbage_collect_values=False)
        interpreter.env = {first: x, **constants, **dict(zip(border, operands.tensors, strict=True))}
        for node in inside:
            interpreter.env[node] = interpreter.run_node(node)
        found: Tensor = interpreter.env[result]
        return found

    return rest, operands
