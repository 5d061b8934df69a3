"""A loop in a graph: ``torch.while_loop`` over any state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished, occurs, tracing
from torchimplicit.graph.explicit import Call
from torchimplicit.private import pytree

MEMORY = torch.contiguous_format
State = TypeVar("State")


class StructureChanged(TypeError):
    """A step has given another structure than it was given."""


class Operands:
    """What the body of a loop uses beside its state, tensors and sizes: in a graph each body has names of its own for them.

    In a graph none of them shares memory with another, nor with one of the outer ones: torch refuses a loop that is given a tensor and
    a view of it. Of those that would, the later ones are copies.
    """

    def __init__(self, tensors: Sequence[Any], call: Call | None = None, outer: Operands | None = None) -> None:
        self.call, self.outer = call, outer
        self.tensors = tuple(_apart(tensors, () if outer is None else outer.all) if tracing() else tensors)

    @property
    def all(self) -> tuple[Any, ...]:
        """All of them: the tensors, then the sizes, and those of what is around it."""
        sizes = () if self.call is None else self.call.sizes
        return (*self.tensors, *sizes, *(() if self.outer is None else self.outer.all))

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
        names = list(names)
        self.tensors, names = tuple(names[: len(self.tensors)]), names[len(self.tensors) :]
        if self.call is not None:
            size = len(self.call.sizes)
            self.call.sizes, names = names[:size], names[size:]
        if self.outer is not None:
            self.outer._name(names)


def repeat(going: Callable[[State], Tensor], body: Callable[[State], State], state: State, operands: Operands) -> State:
    """``while going(state): state = body(state)`` as one operator of the graph.

    The state is a pytree, whose tensors keep their shapes and dtypes; what else it holds stays the same.
    """
    from torchimplicit.private.dynamo import while_loop  # Dynamo takes long to import

    leaves, tree = pytree.tree_flatten(state)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def rebuilt(tensors: Sequence[Tensor]) -> State:
        full = list(leaves)
        for i, tensor in zip(places, tensors, strict=True):
            full[i] = tensor
        return pytree.tree_unflatten(full, tree)

    def condition(*tensors: Any) -> Tensor:
        with operands.named(tensors[len(places) :]):
            return going(rebuilt(tensors[: len(places)])).clone()

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


def settle(
    body: Callable[..., tuple[Tensor, ...]],
    state: tuple[Tensor, ...],
    limit: int,
    others: Sequence[Tensor],
    outer: Operands | None = None,
) -> tuple[Tensor, ...]:
    """``state = body(state, *others)`` until its last tensor is True everywhere, but at most so many times. ``outer`` : what else the
    body uses."""
    if not tracing():
        for _ in range(limit):
            state = body(state, *others)
            if finished(state[-1]):
                break
        return state
    operands = Operands(others, outer=outer)

    def going(carried: tuple[tuple[Tensor, ...], Tensor]) -> Tensor:
        return ~carried[0][-1].all() & (carried[1] < limit)

    def step(carried: tuple[tuple[Tensor, ...], Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
        return body(carried[0], *operands.tensors), carried[1] + 1

    zero = state[-1].new_zeros((), dtype=torch.int64)
    return repeat(going, step, (state, zero), operands)[0]


def mapped(fn: Callable[[Tensor], Tensor], parts: Tensor, outer: Operands) -> Tensor:
    """``fn`` of each of the parts, stacked, one after the other. ``outer`` : what else ``fn`` uses."""
    operands = Operands((parts,), outer=outer)

    def of_one(i: Tensor) -> Tensor:
        return fn(operands.tensors[0].index_select(0, i.reshape(1)).squeeze(0))

    def step(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        i, results = state
        return i + 1, results.index_copy(0, i.reshape(1), of_one(i).unsqueeze(0))

    first = torch.zeros((), dtype=torch.int64, device=parts.device)
    like = of_one(first)
    results = torch.zeros(len(parts), *like.shape, dtype=like.dtype, device=like.device)
    return repeat(lambda state: state[0] < len(parts), step, (first, results), operands)[1]


def where_needed(
    rows: Tensor, compute: Callable[..., tuple[Tensor, ...]], default: tuple[Tensor, ...], others: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """``compute(*others)`` if some of the rows (B,) need it, and else the default. In a graph a loop of one step or none says "if"."""
    if not tracing():
        return compute(*others) if occurs(rows) else default
    operands = Operands(others)

    def step(state: tuple[tuple[Tensor, ...], Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
        return compute(*operands.tensors), torch.zeros_like(state[1])

    return repeat(lambda state: state[1], step, (default, rows.any()), operands)[0]


def _apart(values: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    held = [each.untyped_storage() for each in others if isinstance(each, Tensor)]
    found = []
    for value in values:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            if any(storage is each for each in held):
                value = value.clone()
            else:
                held.append(storage)
        found.append(value)
    return found


def _outline(state: Any) -> Any:
    return pytree.tree_map(lambda leaf: "tensor" if isinstance(leaf, Tensor) else leaf, state)
