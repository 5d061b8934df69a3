"""A loop in a graph: ``torch.while_loop`` over any state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.graph.private import while_loop

MEMORY = torch.contiguous_format
State = TypeVar("State")


class Operands:
    """The tensors that the body of a loop uses beside its state: in a graph each body has names of its own for them."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tuple(tensors)

    @contextmanager
    def named(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """With these names."""
        before, self.tensors = self.tensors, tuple(tensors)
        try:
            yield
        finally:
            self.tensors = before


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

    def condition(*tensors: Tensor) -> Tensor:
        with operands.named(tensors[len(places) :]):
            return going(rebuilt(tensors[: len(places)]))

    def step(*tensors: Tensor) -> tuple[Tensor, ...]:
        with operands.named(tensors[len(places) :]):
            after, structure = pytree.tree_flatten(body(rebuilt(tensors[: len(places)])))
        plain = [(a, b) for a, b in zip(leaves, after, strict=True) if not isinstance(a, Tensor)]
        if structure != tree or any(a is not b and a != b for a, b in plain):
            raise TypeError(f"the state of a loop in a graph has to keep its structure: {tree} became {structure}")
        # No result may share memory with what the step was given, nor two results.
        results = []
        for i in places:
            result = after[i].detach()
            result = result.to(leaves[i].dtype).expand(leaves[i].shape)
            results.append(result.clone(memory_format=MEMORY))
        return tuple(results)

    start = [leaves[i].detach().clone(memory_format=MEMORY) for i in places]
    return rebuilt(while_loop(condition, step, start, operands.tensors))
