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
            from torchimplicit.graph.region import read

            return read(fn.__name__, *args, **kwargs)
        if "torch._dynamo" not in sys.modules:
            return fn(*args, **kwargs)
        if disabled is None:
            disabled = torch.compiler.disable(fn)
        return disabled(*args, **kwargs)

    return call  # type: ignore[return-value]
