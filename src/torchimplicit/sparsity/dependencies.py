"""Which unknowns the entries of tensors depend on, as layers: integer tensors of the same shape, 0 for none and k + 1 for unknown k.

An entry that depends on three unknowns is named by three layers. Where data moves the layers move with it; where it is combined
there are more of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

import torch
from torch import Tensor

MOST = 96  # layers: what depends on more unknowns has no sparse row worth the name
COMPACT = 24  # layers from which on it is worth a sort to drop those that repeat others

Layers = list[Tensor]


class Unknown(Exception):
    """It is not known what the result of an operation depends on, or it is too much."""


def union(parts: Sequence[Layers], shape: torch.Size) -> Layers:
    """What depends on all of the parts, each broadcast to the shape."""
    first, *others = parts
    found = [layer.expand(shape) for layer in first]
    marks = [_mark(layer) for layer in found] if others else []
    for part in others:
        for layer in part:
            layer = layer.expand(shape)
            mark = _mark(layer)
            if not any(mark == seen and torch.equal(layer, old) for seen, old in zip(marks, found, strict=True)):
                found.append(layer)
                marks.append(mark)
    return compact(found)


def _mark(layer: Tensor) -> tuple[int, ...]:
    """A few of its numbers: two layers that differ mostly differ in these."""
    n = layer.numel()
    if not n:
        return ()
    places = torch.tensor([0, n // 3, n // 2, n - 1 - n // 3, n - 1], device=layer.device)
    return tuple(torch.take(layer, places).tolist())


def compact(layers: Layers) -> Layers:
    """The same dependencies in few layers."""
    if len(layers) > COMPACT:
        stacked = torch.stack(layers).sort(0, descending=True).values
        stacked[1:][stacked[1:] == stacked[:-1]] = 0
        stacked = stacked.sort(0, descending=True).values
        layers = list(stacked[: int((stacked != 0).sum(0).max())])
    if len(layers) > MOST:
        raise Unknown("too many unknowns in one entry")
    return layers


def together(parts: Sequence[Layers], shapes: Sequence[torch.Size], move: Callable[..., Tensor]) -> Layers:
    """The layers of ``move(*parts)``, an operation that moves data without combining any, one layer of every part at a time."""
    like = next(layer for part in parts for layer in part)
    empty = [like.new_zeros(()).expand(shape) for shape in shapes]
    rows = zip_longest(*parts)
    return [move(*(none if layer is None else layer for layer, none in zip(row, empty, strict=True))) for row in rows]


def gathered(layers: Layers, slots: Tensor) -> Layers:
    """What depends on several entries of one tensor: ``slots`` (k, *shape) holds their places in it, flat, plus 1; 0 for none."""
    if len(layers) * len(slots) > MOST * COMPACT:
        raise Unknown("too many unknowns in one entry")
    found: Layers = []
    for layer in layers:
        padded = torch.cat([layer.new_zeros(1), layer.reshape(-1)])
        found.extend(padded[slots].unbind(0))
    return compact(found)


def slots_of(target: Tensor, source: Tensor, size: int) -> Tensor:
    """The slots (k, size) of an operation that adds entry ``source[i]`` of a tensor to entry ``target[i]`` of another."""
    target, place = target.flatten().sort(stable=True)
    source = source.flatten()[place]
    count = torch.bincount(target, minlength=size)
    most = int(count.max()) if size else 0
    if most > MOST:
        raise Unknown("too many entries are added up")
    rank = torch.arange(len(target), device=target.device) - (count.cumsum(0) - count)[target]
    slots = torch.zeros(most, size, dtype=torch.int64, device=target.device)
    slots[rank, target] = source + 1
    return slots
