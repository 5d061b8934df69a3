"""Autocast is for the user's function: it is as it was in the forward at every evaluation, and off in our own arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

_AS_IT_IS = nullcontext()


@dataclass(frozen=True)
class Autocast:
    """The autocast state of one device type."""

    device_type: str
    dtype: torch.dtype
    enabled: bool

    @staticmethod
    def now(device_type: str) -> Autocast:
        """The state at this moment."""
        return Autocast(device_type, torch.get_autocast_dtype(device_type), torch.is_autocast_enabled(device_type))

    def restored(self) -> AbstractContextManager[Any]:
        """This state again: a backward runs outside the autocast region of its forward."""
        kind = self.device_type
        if torch.is_autocast_enabled(kind) == self.enabled and torch.get_autocast_dtype(kind) == self.dtype:
            return _AS_IT_IS
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.enabled, cache_enabled=False)


def full_precision(device_type: str) -> AbstractContextManager[Any]:
    """Autocast off: norms, factorisations and the mixing of iterates must not be rounded to half precision.

    Casts cached in a region without gradients are forgotten afterwards, or later users of the same weights would find
    copies that lead nowhere.
    """
    return _switched_off(device_type) if torch.is_autocast_enabled(device_type) else _AS_IT_IS


@contextmanager
def _switched_off(device_type: str) -> Iterator[None]:
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.clear_autocast_cache()
