"""The levels of ``torch.func``: which are active, and the wrappers that they put around tensors. No public function tells either."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._functorch import pyfunctorch

_functorch = torch._C._functorch

BEGINS = {"_grad_increment_nesting": "torch.func.grad or vjp", "_vmap_increment_nesting": "torch.func.vmap"}
"""What begins a level where Dynamo has read a transform into a graph: the name of the call, and of the transform."""


def active() -> bool:
    """Whether a level (grad, vjp, jvp, vmap) is active."""
    return _functorch.peek_interpreter_stack() is not None


def none_active() -> AbstractContextManager[object]:
    """A context without levels."""
    cleared: AbstractContextManager[object] = pyfunctorch.temporarily_clear_interpreter_stack()
    return cleared


def current_level() -> int:
    """The level that is active; -1 for none."""
    current: int | None = _functorch.maybe_current_level()
    return -1 if current is None else current


def level(tensor: Tensor) -> int:
    """That which wrapped a tensor; -1 for a plain one."""
    return _functorch.maybe_get_level(tensor)


def wrapped(tensor: Tensor) -> bool:
    """Whether a level has wrapped the tensor."""
    return _functorch.is_functorch_wrapped_tensor(tensor)


def batched(tensor: Tensor) -> bool:
    """Whether that was a vmap's."""
    return _functorch.is_batchedtensor(tensor)


def inside(tensor: Tensor) -> Tensor:
    """What is in the wrapper."""
    return _functorch.get_unwrapped(tensor)


def batch_dim(tensor: Tensor) -> int:
    """Which dimension of what is inside a vmap's wrapper is the batch."""
    return _functorch.maybe_get_bdim(tensor)


def rewrapped(inner: Tensor, like: Tensor) -> Tensor:
    """A tensor in a wrapper like that of another, which is a vmap's."""
    return _functorch._add_batch_dim(inner, batch_dim(like), level(like))


def without_dead_wrapper(tensor: Tensor) -> Tensor:
    """The tensor without the wrapper of a level that has ended."""
    return _functorch.unwrap_if_dead(tensor)


def over_rows(run: Callable[[Tensor], Any], u: Tensor) -> tuple[Tensor | None, ...]:
    """``torch.vmap(run)(u)`` for a function that may return None: the engine's, which ``torch.vmap`` takes no results of."""
    new = _functorch._vmap_increment_nesting(len(u), "same")
    try:
        results = run(_functorch._add_batch_dim(u, 0, new))
        return tuple(None if out is None else _functorch._remove_batch_dim(out, new, len(u), 0) for out in results)
    finally:
        _functorch._vmap_decrement_nesting()


def vmaps_with_different_random_numbers() -> bool:
    """Whether a ``torch.vmap(..., randomness="different")`` is active."""
    levels = pyfunctorch.retrieve_all_functorch_interpreters()
    return any(isinstance(each, pyfunctorch.VmapInterpreter) and each.randomness() == "different" for each in levels)


@contextmanager
def out_of_sight() -> Iterator[None]:
    """Neither levels nor torch function modes see what happens here; the public way hides it from subclasses only."""
    with none_active() if active() else _nothing(), torch._C.DisableTorchFunction():
        yield


@contextmanager
def _nothing() -> Iterator[None]:
    yield
