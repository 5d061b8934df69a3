"""The entry points that can be part of a graph, by name, and what solves each there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torchimplicit.solution import Solution

ENTRIES: dict[str, Callable[..., Solution]] = {}

LIKE_Z = ("root", "fixed_point", "linear_solve", "implicit")  # whose function returns what z is

F = TypeVar("F", bound=Callable[..., Any])


def solves(entry: str) -> Callable[[F], F]:
    """Decorator: what solves in a graph, given a :class:`~torchimplicit.graph.explicit.Explicit`, the start and all tensors, for the
    entry point of that name.
    """

    def register(fn: F) -> F:
        ENTRIES[entry] = fn
        return fn

    return register
