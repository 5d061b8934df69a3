"""Entry points that torch.compile leaves alone, without the import of Dynamo that ``torch.compiler.disable`` costs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


def uncompiled(fn: F) -> F:
    """``torch.compiler.disable(fn)``, applied at the first call at which Dynamo is there: before, nothing can be compiling.

    Dynamo takes twice as long to import as all else of torch.
    """
    disabled: Any = None

    @wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal disabled
        if torch.compiler.is_dynamo_compiling():
            from torchimplicit.graph.region import read, refusal

            reason = refusal(fn.__name__, **kwargs)
            if reason is None:
                return read(fn.__name__, *args, **kwargs)
            torch._dynamo.graph_break(msg=f"torchimplicit.{fn.__name__} cannot be part of a graph: {reason}")
        if "torch._dynamo" not in sys.modules:
            return fn(*args, **kwargs)
        if disabled is None:
            disabled = torch.compiler.disable(fn)
        return disabled(*args, **kwargs)

    return call  # type: ignore[return-value]
