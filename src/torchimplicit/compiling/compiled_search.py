"""``compile=True``: z* is found by a graph that we have compiled; what is differentiated is the function itself, in plain code."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch

from torchimplicit.autograd.transforms import inside_transform
from torchimplicit.capture.names import name
from torchimplicit.private.dynamo import AVAILABLE, LACKING, TorchDynamoException
from torchimplicit.solution import Solution
from torchimplicit.status import users_frame

_searches: WeakKeyDictionary[Any, Callable[..., Any]] = WeakKeyDictionary()


def compiled_search(
    entry: Callable[..., Solution], fn: Any, z0: Any, args: Any = (), **options: Any
) -> Solution | None:
    """The solution without a derivative, by a compiled graph; None where there is none, and where a transform is active.

    It is compiled once for the code of ``fn``, and anew for what Dynamo's guards see change: dtypes, plain numbers; sizes once.
    """
    if inside_transform():
        return None
    if not AVAILABLE:
        _no_effect(LACKING)
        return None
    key = code_of(fn)
    if key not in _searches:
        _searches[key] = torch.compile(_own_code(_search), fullgraph=True)
    try:
        with torch.no_grad():
            return _searches[key](entry, fn, z0, args, options)
    except TorchDynamoException as error:
        _no_effect(f"torch.compile cannot read {name(fn)} as one graph ({_reason(error)})")
        return None


def _search(entry: Callable[..., Solution], fn: Any, z0: Any, args: Any, options: dict[str, Any]) -> Solution:
    return entry(fn, z0, args, **options)


def _no_effect(why: str) -> None:
    warnings.warn(f"compile=True has no effect: {why}.", stacklevel=users_frame())


def _reason(error: Exception) -> str:
    """The line that says what the matter is."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("Explanation:", "RuntimeError:", "TypeError:", "ValueError:"))]
    return (told or lines or [type(error).__name__])[0].removeprefix("Explanation: ")


def code_of(fn: Any) -> Any:
    """What stays the same of a function that is made at every call."""
    while isinstance(fn, partial):
        fn = fn.func
    return getattr(getattr(fn, "__func__", fn), "__code__", fn)


def _own_code(function: Any) -> Callable[..., Any]:
    """The function with code of its own: torch.compile gives up on code that it has compiled for too many functions."""
    assert isinstance(function, FunctionType)
    return FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
