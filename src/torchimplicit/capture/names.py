"""What a function can reach (closure cells, globals it names, modules), so that errors can call things by their names."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def name(func: Any) -> str:
    """The name of a function, or of the class of an object that is called like one."""
    for attribute in ("__qualname__", "__name__"):
        found = getattr(func, attribute, None)
        if isinstance(found, str):
            return found
    return type(func).__name__


def reachable(fn: Any) -> Iterator[tuple[str, Any]]:
    """The objects that a function reads by name."""
    if isinstance(fn, partial):
        yield from reachable(fn.func)
        yield from ((f"argument {i}", value) for i, value in enumerate(fn.args))
        yield from fn.keywords.items()
        return
    yield name(fn), fn
    if hasattr(fn, "__wrapped__"):
        yield from reachable(fn.__wrapped__)
    owner = getattr(fn, "__self__", None)
    if owner is not None:
        yield "self", owner
    code = getattr(fn, "__code__", None)
    if code is None:
        return
    for variable, cell in zip(code.co_freevars, fn.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # a cell that is not filled yet
            continue
        yield variable, value
        if _ours(fn):  # around functions of the user's, or an object that holds one
            for inner in (value, *(vars(value).values() if _ours(value) and hasattr(value, "__dict__") else ())):
                if callable(inner) and inner is not fn and not isinstance(inner, (type, nn.Module)):
                    yield from reachable(inner)
    for variable in code.co_names:
        if variable in fn.__globals__:
            yield variable, fn.__globals__[variable]


def _ours(value: Any) -> bool:
    """Whether a function, or the class of an object, is of this package."""
    return str(getattr(value, "__module__", "")).partition(".")[0] == "torchimplicit"


def name_of(tensor: Tensor, fn: Any) -> str:
    """What ``fn`` calls a tensor: ``cell.weight``, or else its shape."""
    for variable, value in reachable(fn):
        if value is tensor:
            return f"{variable!r}"
        if isinstance(value, nn.Module):
            for inner, owned in [*value.named_parameters(), *value.named_buffers()]:
                if owned is tensor:
                    return f"{variable}.{inner}"
    return f"a tensor of shape {tuple(tensor.shape)}"


def argument_of(fn: Any, i: int) -> str:
    """What ``fn(z, *args)`` calls args[i]."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):  # of a builtin
        parameters = []
    named = [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    return f"{named[i + 1]!r}" if i + 1 < len(named) else f"args[{i}]"


_eager: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def scripted_in(fn: Any) -> str | None:
    """The name of a TorchScript module or function that ``fn`` uses, if any."""
    for variable, value in reachable(fn):
        if isinstance(value, torch.jit.ScriptFunction):
            return variable
        if isinstance(value, nn.Module) and value not in _eager:
            if any(isinstance(module, torch.jit.ScriptModule) for module in value.modules()):
                return variable
            _eager.add(value)
    return None
