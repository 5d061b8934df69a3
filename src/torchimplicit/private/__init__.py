"""Every name of PyTorch's own that its documentation does not promise, and what it buys. tests/stack/test_private*.py try each."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

# Torch's own layers are made of these two, which have no public names yet (optree would be one more dependency).
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


def dynamo_is_loaded() -> bool:
    """Whether anybody compiles: torch imports Dynamo then, which takes longer than all else of it."""
    return "torch._dynamo" in sys.modules


def left_alone(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: ``fn`` itself until somebody compiles, then what ``torch.compiler.disable``, which loads Dynamo, makes of it."""
    plain: Callable[..., Any] | None = None

    @wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal plain
        if not dynamo_is_loaded():
            return fn(*args, **kwargs)
        if plain is None:
            plain = torch.compiler.disable(fn)
        return plain(*args, **kwargs)

    return call


__all__ = ["TorchDispatchMode", "dynamo_is_loaded", "left_alone", "pytree"]
