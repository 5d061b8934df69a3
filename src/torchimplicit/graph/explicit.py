"""The user's function, as the operator of a solve is given it: a graph of torch calls with all its tensors as inputs."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from torchimplicit.graph.divided import divided, evaluate

FACTS = 6  # numbers of a solution: status, steps, residual, error, evaluations, products
PLAIN = (
    "placeholder",
    "call_function",
    "call_method",
)  # what a graph without modules or contexts of its own is made of


class Call:
    """The graph as a pure function: ``call(*unknowns, *tensors)``.

    tensors : its operands, the unknowns first.
    sizes : those operands that are no tensors, but sizes that are no constants.
    """

    def __init__(self, module: GraphModule, operands: Sequence[Any], unknowns: int) -> None:
        self.module, self.unknowns = module, unknowns
        self.places = [i for i, operand in enumerate(operands) if not isinstance(operand, Tensor)]
        self.sizes = [operands[i] for i in self.places]
        self.tensors = [operand for operand in operands if isinstance(operand, Tensor)]
        self.inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        (output,) = (node for node in module.graph.nodes if node.op == "output")
        self.outputs = list(output.args[0])[unknowns + FACTS :]
        self.nodes = _needed(module, self.outputs)
        self.numbers = self._numbers(operands)
        self.known: dict[Node, Any] = {}

    def __call__(self, *tensors: Tensor) -> list[Any]:
        """What the function returns, flat: its value, then aux."""
        values = self._inputs(tensors) | self.numbers | self.known
        evaluate(self.module, self.nodes, values)
        return [values[node] if isinstance(node, Node) else node for node in self.outputs]

    def hoisted(self) -> tuple[list[Any], Call]:
        """What does not depend on the unknowns, computed once, and the call of the rest, which takes it as ``known``."""
        rest = copy(self)
        unknown = {node for k, node in enumerate(self._tensor_inputs) if k < self.unknowns}
        if any(node.op not in PLAIN or _writes(node) for node in self.nodes):
            return [], rest
        values = self._inputs(self.tensors) | self.numbers
        rest.nodes, border = divided(self.module, self.nodes, unknown, values, self.outputs)
        rest.known = {k: v for k, v in border.items() if k.op != "placeholder" and k not in self.numbers}
        return list(rest.known.values()), rest

    def _numbers(self, operands: Sequence[Any]) -> dict[Node, float]:
        """Plain numbers that Dynamo passes as tensors, so that they may change from call to call: here each is a constant."""
        given = dict(zip(self.inputs, operands, strict=True))
        items = [node for node in self.nodes if node.op == "call_method" and node.target == "item"]
        return {node: float(given[node.args[0]].item()) for node in items if node.args[0] in given}

    def _inputs(self, tensors: Sequence[Any]) -> dict[Node, Any]:
        full: list[Any] = list(tensors)
        for i, size in zip(self.places, self.sizes, strict=True):
            full.insert(i, size)
        return dict(zip(self.inputs, full, strict=True))

    @property
    def _tensor_inputs(self) -> list[Node]:
        return [node for i, node in enumerate(self.inputs) if i not in self.places]


def _needed(module: GraphModule, outputs: Sequence[Any]) -> list[Node]:
    """The nodes that the outputs need, in their order."""
    needed = {node for node in outputs if isinstance(node, Node)}
    for node in reversed(module.graph.nodes):
        if node in needed or (node.op != "output" and (_writes(node) or node.op not in PLAIN)):
            needed.update((node, *node.all_input_nodes))
    return [node for node in module.graph.nodes if node in needed]


def _writes(node: Node) -> bool:
    """Whether a call may do more than return its result: change a tensor, draw random numbers, enter a context."""
    name = str(getattr(node.target, "__name__", node.target))
    if node.op == "call_method":
        return name.endswith("_") and not name.endswith("__")
    if node.op != "call_function":
        return False
    return name.endswith("_") or name == "setitem" or "inplace" in node.kwargs or name in _RANDOM


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
