"""Where we are: inside a ``torch.func`` transform, inside forward-mode AD, or in plain eager code."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from torchimplicit.private import autograd, functorch

FEW = 16


def tracing() -> bool:
    """True while torch.compile or torch.export makes a graph of what runs here: tensors have no values."""
    return torch.compiler.is_compiling()


def no_more_than(entries: Any, limit: int) -> bool:
    """entries ≤ limit, of a whole batch. Where torch.export leaves its size open they are: the question would bound the size."""
    return (isinstance(entries, torch.SymInt) and torch.compiler.is_exporting()) or bool(entries <= limit)


def values_hidden() -> bool:
    """True where no value may steer Python: inside a ``torch.func`` transform, and while a graph is made."""
    return tracing() or inside_functorch()


def inside_functorch() -> bool:
    """True when a ``torch.func`` level (grad, vjp, jvp, vmap) is active."""
    return functorch.active()


def inside_transform() -> bool:
    """True when a ``torch.func`` level or a forward-mode AD level is active."""
    return inside_functorch() or autograd.forward_mode()


def outside_transforms() -> AbstractContextManager[object]:
    """A context without functorch levels, where plain tensors stay plain: an operation inside a level would wrap them."""
    return functorch.none_active() if inside_functorch() else nullcontext()


def without_dead_wrappers(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors without the wrappers of transforms that have ended: a pullback from ``torch.func.vjp`` is called after it,
    and autograd takes what is still wrapped for a constant."""
    return [_unwrapped(tensor) for tensor in tensors]


def _unwrapped(tensor: Tensor) -> Tensor:
    inner = functorch.without_dead_wrapper(tensor)
    return tensor if inner is tensor else _unwrapped(inner)


def finished(mask: Tensor) -> bool:
    """Whether every entry of ``mask`` is True, so that a loop may stop or a second attempt be left out.

    Always False inside a functorch transform, where a value may not steer Python: one boolean would have to answer for
    every sample at once. There loops run to their limit, with finished systems masked. And while a graph is made.
    """
    return not values_hidden() and _all(mask)


def occurs(mask: Tensor) -> bool:
    """Whether some entry of ``mask`` is True, or no zero, so that something is to be done; always where :func:`values_hidden`."""
    if values_hidden():
        return True
    if _few(mask):
        return any(mask.tolist())
    return mask.numel() > 0 and bool(mask.view(torch.uint8).max())


def below(v: Tensor, limit: float) -> bool:
    """Whether every number of ``v`` is smaller than a limit; where :func:`values_hidden` never."""
    if values_hidden():
        return False
    return all(x < limit for x in v.tolist()) if _few(v) else v.numel() == 0 or float(v.amax()) < limit


def reaches(v: Tensor, limit: float) -> bool:
    """Whether some number of ``v`` is no larger than a limit, or NaN; where :func:`values_hidden` always."""
    if values_hidden():
        return True
    return not all(x > limit for x in v.tolist()) if _few(v) else v.numel() > 0 and not float(v.amin()) > limit


def count(mask: Tensor) -> int:
    """How many entries of ``mask`` are True; −1 where :func:`values_hidden`."""
    if values_hidden():
        return -1
    return sum(mask.tolist()) if _few(mask) else int(mask.count_nonzero())


def _all(mask: Tensor) -> bool:
    """``mask.all()``; as numbers, a large mask is reduced in a twentieth of the time on a processor."""
    if _few(mask):
        return all(mask.tolist())
    return mask.numel() == 0 or bool(mask.view(torch.uint8).min())


def _few(mask: Tensor) -> bool:
    """Whether Python looks through the entries in less time than an operation takes."""
    return mask.ndim == 1 and mask.shape[0] <= FEW
