"""The user's function, as the operator of a solve is given it: a graph of torch calls with all its tensors as inputs."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from torchimplicit.graph.divided import divided
from torchimplicit.graph.evaluation import evaluate
from torchimplicit.private import functorch

FACTS = 6  # numbers of a solution: status, steps, residual, error, evaluations, products
PLAIN = (
    "placeholder",
    "call_function",
    "call_method",
)  # what a graph without modules or contexts of its own is made of


def transform_within(graph: GraphModule) -> str | None:
    """The transform of torch.func that there is in what Dynamo has made of the function of a solve; None where there is none."""
    parts = [part for part in graph.modules() if isinstance(part, GraphModule)]
    names = [getattr(node.target, "__name__", "") for part in parts for node in part.graph.nodes]
    return next((functorch.BEGINS[name] for name in names if name in functorch.BEGINS), None)


class Call:
    """The graph as a pure function: ``call(*unknowns, *tensors)``.

    tensors : its operands, the unknowns first.
    sizes : those operands that are no tensors, but sizes that are no constants.
    """

    def __init__(self, module: GraphModule, operands: Sequence[Any], unknowns: int) -> None:
        self.module, self.unknowns = module, unknowns
        given = dict(zip((node for node in module.graph.nodes if node.op == "placeholder"), operands, strict=True))
        self._of_tensors = [node for node, operand in given.items() if isinstance(operand, Tensor)]
        self._of_sizes = [node for node, operand in given.items() if isinstance(operand, (int, torch.SymInt))]
        self.tensors, self.sizes = [given[node] for node in self._of_tensors], [given[node] for node in self._of_sizes]
        (output,) = (node for node in module.graph.nodes if node.op == "output")
        self.outputs = list(output.args[0])[unknowns + FACTS :]
        self.nodes = _needed(module, self.outputs)
        self.numbers = self._numbers(given)
        self.known: dict[Node, Any] = {}

    def __call__(self, *tensors: Tensor) -> list[Any]:
        """What the function returns, flat: its value, then aux."""
        values = self._inputs(tensors) | self.numbers | self.known
        evaluate(self.module, self.nodes, values)
        return [values[node] if isinstance(node, Node) else node for node in self.outputs]

    def hoisted(self) -> tuple[list[Any], Call]:
        """What does not depend on the unknowns, computed once, and the call of the rest, which takes it as ``known``."""
        rest = copy(self)
        unknown = set(self._of_tensors[: self.unknowns])
        if any(node.op not in PLAIN or _acts(node) for node in self.nodes):
            return [], rest
        values = self._inputs(self.tensors) | self.numbers
        rest.nodes, border = divided(self.module, self.nodes, unknown, values, self.outputs)
        rest.known = {k: v for k, v in border.items() if k.op != "placeholder" and k not in self.numbers}
        return list(rest.known.values()), rest

    def _numbers(self, given: dict[Node, Any]) -> dict[Node, float]:
        """Plain numbers that Dynamo lets change from call to call, some of them as tensors: here each is a constant."""
        items = [
            (node, node.all_input_nodes[0]) for node in self.nodes if node.op == "call_method" and node.target == "item"
        ]
        numbers = {node: float(given[tensor].item()) for node, tensor in items if tensor in given}
        return numbers | {node: float(given[node]) for node in given.keys() - {*self._of_tensors, *self._of_sizes}}

    def _inputs(self, tensors: Sequence[Any]) -> dict[Node, Any]:
        of_tensors, of_sizes = zip(self._of_tensors, tensors, strict=True), zip(self._of_sizes, self.sizes, strict=True)
        return dict(of_tensors) | dict(of_sizes)


def _needed(module: GraphModule, outputs: Sequence[Any]) -> list[Node]:
    """The nodes that the outputs need, in their order."""
    needed = {node for node in outputs if isinstance(node, Node)}
    for node in reversed(module.graph.nodes):
        if node in needed or (node.op != "output" and (_acts(node) or node.op not in PLAIN)):
            needed.update((node, *node.all_input_nodes))
    return [node for node in module.graph.nodes if node in needed]


def _acts(node: Node) -> bool:
    """Whether a call may do more than return its result: change a tensor, draw random numbers, enter or leave a context. Of those that
    have no result, or whose result is not used, it is all that they can be there for."""
    name = str(getattr(node.target, "__name__", node.target))
    if node.op == "call_method":
        return name.endswith("_") and not name.endswith("__")
    if node.op != "call_function":
        return False
    written = node.target in _IN_PLACE or "inplace" in node.kwargs or "out" in node.kwargs
    return name.endswith("_") or written or name in _RANDOM or not node.users


_IN_PLACE = {operator.setitem, operator.delitem} | {
    getattr(operator, f"i{name}")
    for name in (
        "add",
        "sub",
        "mul",
        "truediv",
        "floordiv",
        "mod",
        "pow",
        "matmul",
        "and",
        "or",
        "xor",
        "lshift",
        "rshift",
    )
}
_RANDOM = (
    "dropout",
    "rand",
    "randn",
    "rand_like",
    "randn_like",
    "bernoulli",
    "multinomial",
    "normal",
    "randint",
    "randperm",
)


class Explicit:
    """The user's function of z and explicit tensors, as the entry points take it."""

    def __init__(self, call: Call, has_aux: bool, like_z: bool, bounded: bool = False) -> None:
        self.call, self.has_aux, self.bounded = call, has_aux, bounded
        self.values = (call.unknowns if like_z else 1) + 2 * call.unknowns * bounded

    def __call__(self, z: Any, *tensors: Tensor) -> Any:
        return self.of(self.call, z, *tensors)

    def of(self, call: Call, z: Any, *tensors: Tensor) -> Any:
        """The same by another call."""
        leaves = [z] if isinstance(z, Tensor) else z
        results = call(*leaves, *tensors)
        values, aux = results[: self.values], tuple(results[self.values :])
        out: Any = values if len(values) > 1 else values[0]
        if self.bounded:
            out = with_bounds(values, len(leaves))
        return (out, aux) if self.has_aux else out


def with_bounds(values: Sequence[Any], unknowns: int) -> tuple[Any, Any, Any]:
    """The value of a function, and its lower and upper bounds, each like z, from all of them in a row."""
    lower, upper = values[1 : 1 + unknowns], values[1 + unknowns : 1 + 2 * unknowns]
    return (values[0], *(limit[0] if unknowns == 1 else list(limit) for limit in (lower, upper)))
