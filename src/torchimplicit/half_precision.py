"""Whether a function computes in half precision what it makes of z: then its noise is far above the rounding of z."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from torchimplicit.names import reachable
from torchimplicit.state import HALF


def may_be_half(fn: Callable[..., Any], args: Sequence[Any]) -> bool:
    """Whether there is a tensor of half precision, or a module that begins with one, among args and what ``fn`` reads by name."""
    return any(tensor.dtype in HALF for tensor in _tensors(fn, args))


def _tensors(fn: Callable[..., Any], args: Sequence[Any]) -> Iterator[Tensor]:
    for value in (*pytree.tree_leaves(tuple(args)), *(value for _, value in reachable(fn))):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, nn.Module):
            yield from (parameter for parameter, _ in zip(value.parameters(), range(1), strict=False))


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
        while torch._C._functorch.is_functorch_wrapped_tensor(z):
            z = torch._C._functorch.get_unwrapped(z)
        self.dependent = {id(z): z}  # kept alive, so that no identity is used twice
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(id(leaf) in self.dependent for leaf in pytree.tree_leaves((args, kwargs))):
            made = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]
            self.dependent.update((id(tensor), tensor) for tensor in made)
            self.dtypes.update(tensor.dtype for tensor in made)
        return out
