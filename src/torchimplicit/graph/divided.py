"""A graph in two parts: what depends on some of its inputs, which a loop evaluates again and again, and what is computed before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from torchimplicit.graph.evaluation import evaluate


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
