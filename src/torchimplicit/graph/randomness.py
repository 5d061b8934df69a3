"""Random numbers in a function that is read for a graph: nothing compares two of its values there, so they are refused."""

from __future__ import annotations

from typing import Any

import torch

from torchimplicit.private import TorchDispatchMode
from torchimplicit.private.operators import argument


class random_numbers_refused(TorchDispatchMode):
    """Raise RuntimeError where an operator draws random numbers."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and _draws(func, args, kwargs):
            raise RuntimeError(
                f"{self.what}: the function draws random numbers ({func}), so that it has no solution. Call .eval() on what drops "
                f"out, or leave torch.compile out and pass randomness='frozen'."
            )
        return func(*args, **kwargs)


def _draws(func: Any, args: Any, kwargs: Any) -> bool:
    """Attention draws nothing where it drops nothing out."""
    given = argument(func, "dropout_p", args, kwargs)
    return bool(given is None or given != 0)
