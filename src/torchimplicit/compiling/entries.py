"""The entry points that can be part of a graph, by name, and what solves each there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torchimplicit.solution import Solution

ENTRY_POINTS: dict[str, Callable[..., Solution]] = {}
LIKE_Z: list[str] = []  # those whose function returns what z is

F = TypeVar("F", bound=Callable[..., Any])


def solves(entry: str, like_z: bool = False) -> Callable[[F], F]:
    """Decorator: what solves in a graph, given a :class:`~torchimplicit.graph.explicit.Explicit`, the start and all tensors, for the
    entry point of that name. ``like_z`` : whether its function returns what z is.
    """

    def register(fn: F) -> F:
        ENTRY_POINTS[entry] = fn
        if like_z:
            LIKE_Z.append(entry)
        return fn

    return register
