"""A loop in a graph: ``torch.while_loop`` over any state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.graph.explicit import Call
from torchimplicit.graph.private import while_loop

MEMORY = torch.contiguous_format
State = TypeVar("State")


class StructureChanged(TypeError):
    """A step has given another structure than it was given."""


class Operands:
    """What the body of a loop uses beside its state, tensors and sizes: in a graph each body has names of its own for them."""

    def __init__(self, tensors: Sequence[Tensor], call: Call) -> None:
        self.tensors, self.call = tuple(tensors), call

    @property
    def all(self) -> tuple[Any, ...]:
        """All of them: the tensors, then the sizes."""
        return (*self.tensors, *self.call.sizes)

    @contextmanager
    def named(self, names: Sequence[Any]) -> Iterator[None]:
        """With these names."""
        before = self.all
        try:
            self._name(names)
            yield
        finally:
            self._name(before)

    def _name(self, names: Sequence[Any]) -> None:
        size = len(self.tensors)
        self.tensors, self.call.sizes = tuple(names[:size]), list(names[size:])


def repeat(
    going: Callable[[State], Tensor], body: Callable[[State], State], state: State, operands: Operands
) -> State:
    """``while going(state): state = body(state)`` as one operator of the graph.

    The state is a pytree, whose tensors keep their shapes and dtypes; what else it holds stays the same.
    """
    leaves, tree = pytree.tree_flatten(state)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def rebuilt(tensors: Sequence[Tensor]) -> State:
        full = list(leaves)
        for i, tensor in zip(places, tensors, strict=True):
            full[i] = tensor
        return pytree.tree_unflatten(full, tree)

    def condition(*tensors: Any) -> Tensor:
        with operands.named(tensors[len(places) :]):
            return going(rebuilt(tensors[: len(places)]))

    def step(*tensors: Any) -> tuple[Tensor, ...]:
        with operands.named(tensors[len(places) :]):
            after, structure = pytree.tree_flatten(body(rebuilt(tensors[: len(places)])))
        kept = structure == tree and all(
            isinstance(b, Tensor) if isinstance(a, Tensor) else not isinstance(b, Tensor) and a == b
            for a, b in zip(leaves, after, strict=True)
        )
        if not kept:
            raise StructureChanged(
                f"the state of a loop in a graph keeps its structure and its plain values: {_outline(state)} became "
                f"{_outline(pytree.tree_unflatten(after, structure))}"
            )
        # No result may share memory with what the step was given, nor two results.
        results = []
        for i in places:
            result = after[i].detach()
            result = result.to(leaves[i].dtype).expand(leaves[i].shape)
            results.append(result.clone(memory_format=MEMORY))
        return tuple(results)

    start = [leaves[i].detach().clone(memory_format=MEMORY) for i in places]
    return rebuilt(while_loop(condition, step, start, operands.all))


def _outline(state: Any) -> Any:
    return pytree.tree_map(lambda leaf: "tensor" if isinstance(leaf, Tensor) else leaf, state)
