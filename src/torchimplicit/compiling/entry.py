"""An entry point as torch.compile sees it: part of the graph where that can be, left alone where not."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

from torchimplicit.graph.explicit import Explicit
from torchimplicit.private import left_alone

F = TypeVar("F", bound=Callable[..., Any])


def answer(solver: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """What a black box gives in code that is made a graph of: a part of that, if it can be read."""
    if not torch.compiler.is_dynamo_compiling():
        return solver(*args)
    from torchimplicit.private.dynamo import AVAILABLE

    if not AVAILABLE:
        return torch.compiler.disable(solver)(*args)
    from torchimplicit.compiling.region import read_black_box

    return read_black_box(solver, args)


def entry_point(fn: F) -> F:
    """In code that torch.compile reads, one operator of the graph (:mod:`torchimplicit.compiling.region`), or, where that cannot be, a
    call of the function in plain code. With ``compile=True`` the solution is found by a graph of ours.

    Dynamo, which takes twice as long to import as all else of torch, is imported only where somebody compiles.
    """
    plain = left_alone(fn)
    name = fn.__name__.lstrip("_")
    code = fn.__code__
    first = code.co_varnames[0] if code.co_argcount else ""  # the user's function, which has many names

    @wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        if first in kwargs:
            args = (kwargs.pop(first), *args)
        if torch.compiler.is_dynamo_compiling() and args:
            from torchimplicit.compiling.region import read, refusal
            from torchimplicit.private.dynamo import AVAILABLE, graph_break

            reason = refusal(name, args[0], **kwargs)
            if reason is None:
                return read(name, *args, **kwargs)
            if AVAILABLE:  # or the break comes by itself, below: an older torch takes no message
                graph_break(f"torchimplicit.{name} cannot be part of a graph: {reason}")
            kwargs.pop("compile", None)  # nor can the search
        # Not by a function of ours: where Dynamo gives up on this one, for a sparse argument, say, it still reads what is called here.
        elif torch.compiler.is_compiling() and args and not isinstance(args[0], Explicit):
            from torchimplicit.compiling.region import read, refusal
            from torchimplicit.private.dynamo import read_by_dynamo

            reason = refusal(name, args[0], **kwargs)
            if reason is not None:
                raise RuntimeError(f"torchimplicit.{name} cannot be exported: {reason}.")
            return read_by_dynamo(read, name, *args, **kwargs)
        elif kwargs.get("compile", False) is True:
            from torchimplicit.compiling.compiled_search import compiled_search

            kwargs["compile"] = compiled_search(call, *args, **{**kwargs, "compile": False}) or False
        return plain(*args, **kwargs)

    return call  # type: ignore[return-value]
