"""Whether a function computes in half precision what it makes of z: then its noise is far above the rounding of z."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from torchimplicit.capture.names import reachable
from torchimplicit.layout import HALF
from torchimplicit.private import TorchDispatchMode, functorch, pytree

# What is written where autocast is switched on, or a cast is made.
_NAMES = frozenset({"autocast", "decorate_autocast", "half", "float16", "bfloat16"})
_silent: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # modules whose code does not


def may_be_half(fn: Callable[..., Any], args: Sequence[Any]) -> bool:
    """Whether half precision is in sight, so that it is worth an evaluation to see it used: among args, or in what ``fn`` reads by
    name, there is a tensor of it, a module that begins with one, or code that speaks of it.
    """
    return any(_about_half(value) for value in pytree.tree_leaves(tuple(args))) or any(
        _about_half(value) for _, value in reachable(fn)
    )


def _about_half(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.dtype in HALF
    if isinstance(value, nn.Module):
        first = next(value.parameters(), None)
        if first is not None and first.dtype in HALF:
            return True
        if value not in _silent and not any(_speaks_of_half(_forward(module)) for module in value.modules()):
            _silent.add(value)
        return value not in _silent
    return _speaks_of_half(value)


def _forward(module: nn.Module) -> Any:
    return inspect.getattr_static(type(module), "forward", None)  # a ScriptModule's is not there to be had


def _speaks_of_half(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return isinstance(code, CodeType) and _named_in(code)


@lru_cache(maxsize=4096)
def _named_in(code: CodeType) -> bool:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return not _NAMES.isdisjoint((code.co_name, *code.co_names)) or any(_named_in(part) for part in inner)


def half_precision_of(f: Callable[[Tensor], Any], z: Tensor) -> torch.dtype | None:
    """The coarsest dtype of half precision in which something is computed from z when f is evaluated there, if there is one."""
    seen = _Seen(z)
    with seen:
        f(z)
    return max(seen.dtypes & set(HALF), key=lambda dtype: torch.finfo(dtype).eps, default=None)


class _Seen(TorchDispatchMode):
    """Sees every operation, in the casts of autocast and under transforms too, and follows what is computed from z."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        while functorch.wrapped(z):
            z = functorch.inside(z)
        self.dependent = {id(z): z}  # kept alive, so that no identity is used twice
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(id(leaf) in self.dependent for leaf in pytree.tree_leaves((args, kwargs))):
            made = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]
            self.dependent.update((id(tensor), tensor) for tensor in made)
            self.dtypes.update(tensor.dtype for tensor in made)
        return out
