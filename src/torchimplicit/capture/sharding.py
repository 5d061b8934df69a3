"""Sharded modules and tensors (FSDP, tensor parallelism) inside a user's function: they are refused before anything is solved.

Such a module exchanges its parameters with other processes whenever it is called, and each process calls it as often as its own
systems need. What it computes with are copies that exist during the call only: a gradient in them reaches no parameter.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from torchimplicit.capture.names import name, reachable
from torchimplicit.private import pytree

_NOT_DISTRIBUTED = nullcontext()


def sharded_modules_refused(fn: Callable[..., Any]) -> AbstractContextManager[None]:
    """While ``fn`` is evaluated here: TypeError when it calls a sharded module, before that does anything.

    Modules that it can reach and does not call may be sharded.
    """
    return _refusing(fn) if _distributed() else _NOT_DISTRIBUTED


def refuse_sharded_tensors(fn: Callable[..., Any], *given: Any) -> None:
    """Raise TypeError for a sharded tensor among what is given to ``fn``, or what it reads by name."""
    if not _distributed():
        return
    for variable, value in (*(("an argument", leaf) for leaf in pytree.tree_leaves(given)), *reachable(fn)):
        if _is_sharded_tensor(value):
            raise _refusal(fn, f"uses {variable}, a {type(value).__name__}")


@contextmanager
def _refusing(fn: Callable[..., Any]) -> Iterator[None]:
    thread = threading.get_ident()

    def look(module: nn.Module, _: Any) -> None:
        found = _how_sharded(module) if threading.get_ident() == thread else None
        if found is not None:
            raise _refusal(fn, f"calls a {type(module).__name__} {found}")

    hook = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()


def _how_sharded(module: nn.Module) -> str | None:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and isinstance(module, fsdp.FSDPModule):
        return "that fully_shard has sharded"
    if fsdp is not None and isinstance(module, fsdp.FullyShardedDataParallel):
        return f"around a {type(module.module).__name__}"
    owned = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    return next((f"whose {key} is a DTensor" for key, tensor in owned.items() if _is_sharded_tensor(tensor)), None)


def _is_sharded_tensor(value: Any) -> bool:
    tensor = sys.modules.get("torch.distributed.tensor")
    return tensor is not None and isinstance(value, tensor.DTensor)


def _distributed() -> bool:
    """Whether there is a process group: nothing is sharded without one."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _refusal(fn: Callable[..., Any], what: str) -> TypeError:
    return TypeError(
        f"{name(fn)} {what}. Sharded parameters are exchanged between processes at every call, and each process calls the function of "
        f"an implicit solve as often as its own systems need: they would wait for each other for ever, and the parameters' gradients "
        f"would be lost. Keep what the function uses unsharded (leave the cell out of fully_shard, or of the tensor-parallel "
        f"plan), and wrap the whole layer in DistributedDataParallel."
    )
