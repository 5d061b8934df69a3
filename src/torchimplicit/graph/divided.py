"""A graph in two parts: what depends on some of its inputs, which a loop evaluates again and again, and what is computed before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from torchimplicit.private.operators import LOOK_AT_FACTORS, DispatchMode


def evaluate(module: GraphModule, nodes: Iterable[Node], values: dict[Node, Any]) -> None:
    """Add the values of those nodes that have none yet."""
    interpreter = _WithoutCheckpoints(module, garbage_collect_values=False)
    interpreter.env = values
    with Unchecked():
        for node in nodes:
            if node not in values:
                values[node] = interpreter.run_node(node)


class _WithoutCheckpoints(Interpreter):
    """A checkpoint within the function saves nothing, for a solve keeps z* alone; and torch.func does not take its hooks."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if getattr(target, "__name__", "") == "tag_activation_checkpoint":
            (target, *args), kwargs = args, {}
        return super().call_function(target, tuple(args), kwargs)


class Unchecked(DispatchMode):
    """Where torch.linalg looks at a factorisation and raises, which a loop cannot, the factors of what has none are not a number.

    Those of LU and LDL have a zero on the diagonal then, and what is solved with them is not finite without this.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is LOOK_AT_FACTORS:
            return None
        results = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.linalg_cholesky_ex.default:
            factor, failed = results
            return factor.masked_fill(failed.gt(0)[..., None, None], torch.nan), failed
        return results


def divided(
    module: GraphModule, nodes: Sequence[Node], unknown: Iterable[Node], values: dict[Node, Any], results: Iterable[Any]
) -> tuple[list[Node], dict[Node, Any]]:
    """The nodes that depend on the unknown ones, and what they and the results use of the others, evaluated here.

    A loop takes tensors and sizes; what else there is costs nothing, and is computed in it.
    """
    inside, known = set(unknown), dict(values)
    for node in nodes:
        if any(each in inside for each in node.all_input_nodes):
            inside.add(node)
    before = [node for node in nodes if node not in inside]
    evaluate(module, before, known)
    used = {each for node in inside for each in node.all_input_nodes} | {
        each for each in results if isinstance(each, Node)
    }
    for node in reversed(before):
        if node in used and node not in values and not isinstance(known[node], (Tensor, int, torch.SymInt)):
            inside.add(node)
            used.update(node.all_input_nodes)
    border = {node: known[node] for node in before if node in used and node not in inside}
    return [node for node in nodes if node in inside], border
