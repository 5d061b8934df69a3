"""One torch call as it is noted: its function, its plain arguments, and where its tensors stand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchimplicit.private import functorch


class CaptureError(RuntimeError):
    """A function uses a tensor in a way that cannot be made explicit; the message names it and says what to do."""


class Call(NamedTuple):
    """One torch call: the function, its plain arguments, and which of its leaves are explicit tensors.

    places : (position among the leaves, slot, depth: how many vmaps that the function itself entered wrap the tensor).
    """

    func: Any
    plain: tuple[Any, ...]
    places: tuple[tuple[int, int, int], ...]


def wrapped_like(tensor: Tensor, like: Tensor, depth: int) -> Tensor:
    """``tensor`` in the outermost ``depth`` vmap wrappers of ``like``."""
    if depth == 0:
        return tensor
    return functorch.rewrapped(wrapped_like(tensor, functorch.inside(like), depth - 1), like)


@dataclass(frozen=True)
class Numbers:
    """What an array or a scalar of another library (NumPy, say) holds: they are changed and rebound like tensors."""

    format: str
    shape: tuple[int, ...] | None
    data: bytes

    def __repr__(self) -> str:
        return f"an array of shape {self.shape} and bytes {self.data[:16].hex()}"


COMPARED = (bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.Size)


def plain_of(leaf: Any) -> Any:
    """What of an argument that is no tensor must be the same at every evaluation."""
    if isinstance(leaf, COMPARED):
        return leaf
    try:
        view = memoryview(leaf)
    except TypeError:
        return type(leaf)
    return Numbers(view.format, view.shape, view.tobytes())


def same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(x is y or x == y or (x != x and y != y) for x, y in zip(a, b, strict=True))


def tensors_in(out: Any) -> Sequence[Tensor]:
    """The tensors that a torch call has returned."""
    if isinstance(out, Tensor):
        return (out,)
    if isinstance(out, dict):
        out = tuple(out.values())
    return [t for item in out for t in tensors_in(item)] if isinstance(out, (tuple, list)) else ()


def map_leaves(args: Any, kwargs: Any, visit: Callable[[int, Any], Any]) -> tuple[Any, Any]:
    """``visit(position, leaf)`` at every leaf of the containers that torch calls take, in order."""
    if not kwargs and not any(type(arg) in _CONTAINERS for arg in args):  # most calls
        return tuple([visit(position, arg) for position, arg in enumerate(args)]), kwargs
    positions = itertools.count()
    return _walk(args, positions, visit), _walk(kwargs, positions, visit)


_CONTAINERS = (tuple, list, dict, slice)


def _walk(tree: Any, positions: Iterator[int], visit: Callable[[int, Any], Any]) -> Any:
    kind = type(tree)
    if kind is tuple or kind is list:
        return kind([_walk(item, positions, visit) for item in tree])
    if kind is dict:
        return {key: _walk(item, positions, visit) for key, item in tree.items()}
    if kind is slice:
        return slice(*(_walk(part, positions, visit) for part in (tree.start, tree.stop, tree.step)))
    return visit(next(positions), tree)
