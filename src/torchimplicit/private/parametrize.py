"""What parametrised modules keep: the weights of ``parametrize.cached()``, and buffers, also those that are None as yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.utils import parametrize


def cached() -> bool:
    """Whether weights are kept."""
    return bool(parametrize._cache_enabled)


def cache_now() -> dict[Any, Any] | None:
    """Those that are kept at this moment; None where none are."""
    return dict(parametrize._cache) if cached() else None


@contextmanager
def cache_as_it_was(cache: dict[Any, Any] | None) -> Iterator[None]:
    """A function recorded while its weights were cached does not compute them when it is evaluated again."""
    if cache is None:
        yield
        return
    with parametrize.cached():
        parametrize._cache.update(cache)
        yield


def buffers_of(module: nn.Module) -> list[str]:
    """The names of its own buffers; ``named_buffers`` leaves out those that are None."""
    return list(module._buffers)
