"""Parametrised weights (``torch.nn.utils.parametrize``) inside a user's function: their state, and their cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from torchimplicit.names import reachable
from torchimplicit.transforms import level


@dataclass(frozen=True)
class State:
    """A buffer that a parametrisation owns, such as a vector of spectral normalisation's power iteration.

    In training mode it changes at every evaluation, but it is the parametrisation's own estimate and no part of the function.
    """

    owner: nn.Module
    name: str

    @property
    def address(self) -> int:
        """Where its numbers are; the buffer may be another tensor object after each evaluation."""
        buffer = self.owner._buffers[self.name]
        return 0 if buffer is None or level(buffer) >= 0 else buffer.data_ptr()


def states_of(fn: Any) -> list[State]:
    """The states of the parametrisations in the modules that ``fn`` uses."""
    modules = (value for _, value in reachable(fn) if isinstance(value, nn.Module))
    lists = (
        part for module in modules for part in module.modules() if isinstance(part, parametrize.ParametrizationList)
    )
    return [State(owner, name) for part in lists for owner in part.modules() for name in owner._buffers]


@contextmanager
def left_as_they_are(states: Sequence[State]) -> Iterator[None]:
    """The modules keep their own buffers, whatever an evaluation assigns to them."""
    before = [state.owner._buffers[state.name] for state in states]
    try:
        yield
    finally:
        for state, buffer in zip(states, before, strict=True):
            state.owner._buffers[state.name] = buffer


def cache_now() -> dict[Any, Any] | None:
    """The weights that ``parametrize.cached()`` holds at this moment; None outside of it."""
    return dict(parametrize._cache) if parametrize._cache_enabled else None


def cache_may_lack_graphs() -> bool:
    """Whether weights that are computed now, without gradients, would be kept for those who need gradients."""
    return bool(parametrize._cache_enabled) and torch.is_grad_enabled()


@contextmanager
def cache_as_it_was(cache: dict[Any, Any] | None) -> Iterator[None]:
    """A function recorded while its weights were cached does not compute them when it is evaluated again."""
    if cache is None:
        yield
        return
    with parametrize.cached():
        parametrize._cache.update(cache)
        yield
