"""Parametrised weights (``torch.nn.utils.parametrize``) inside a user's function: their state, and their cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from torchimplicit.capture.names import reachable
from torchimplicit.private import functorch
from torchimplicit.private.parametrize import buffers_of, cached


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
        buffer = getattr(self.owner, self.name)
        return 0 if buffer is None or functorch.level(buffer) >= 0 else buffer.data_ptr()


def states_of(fn: Any) -> list[State]:
    """The states of the parametrisations in the modules that ``fn`` uses."""
    modules = (value for _, value in reachable(fn) if isinstance(value, nn.Module))
    lists = (
        part for module in modules for part in module.modules() if isinstance(part, parametrize.ParametrizationList)
    )
    return [State(owner, name) for part in lists for owner in part.modules() for name in buffers_of(owner)]


def parametrised(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """The weights that are computed from others: whose they are, and their names."""
    parts = [part for part in module.modules() if parametrize.is_parametrized(part)]
    return [(part, str(name)) for part in parts for name in part.parametrizations]  # type: ignore[union-attr]


@contextmanager
def buffers_kept(states: Sequence[State]) -> Iterator[None]:
    """The modules keep their own buffers, whatever an evaluation assigns to them."""
    before = [getattr(state.owner, state.name) for state in states]
    try:
        yield
    finally:
        for state, buffer in zip(states, before, strict=True):
            setattr(state.owner, state.name, buffer)


def cache_may_lack_graphs() -> bool:
    """Whether weights that are computed now, without gradients, would be kept for those who need gradients."""
    return cached() and torch.is_grad_enabled()
