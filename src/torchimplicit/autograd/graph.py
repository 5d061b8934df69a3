"""The graphs that autograd records: what the nodes behind a tensor tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from torchimplicit.private import autograd


def nodes(tensor: Tensor) -> Iterator[Any]:
    """The nodes of the graph of a tensor, its own first."""
    seen: set[Any] = set()
    waiting: list[Any] = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [below for below, _ in node.next_functions]


def compiled(tensor: Tensor) -> bool:
    """Whether the graph goes through what torch.compile has made."""
    return any(autograd.is_compiled(node) for node in nodes(tensor))


def reaches(tensor: Tensor, variables: Sequence[Tensor]) -> bool:
    """Whether the graph ends in one of the variables."""
    ours = {id(t) for t in variables}
    return any(autograd.is_leaf(node) and id(node.variable) in ours for node in nodes(tensor))


def hidden(out: Tensor, allowed: Sequence[Tensor], start: int) -> Tensor | None:
    """A tensor in the graph of ``out`` that is none of ``allowed``: a leaf, or (as ``out`` itself) one computed before ``start``."""
    ours = {id(t) for t in allowed}
    for node in nodes(out):
        if autograd.is_leaf(node):
            variable: Tensor = node.variable
            if id(variable) not in ours:
                return variable
        elif autograd.sequence(node) < start:
            return out
    return None


def sequence_now() -> int:
    """A number that the graph recorded from here on will not fall below."""
    with torch.enable_grad():
        return sequence(torch.zeros((), requires_grad=True).view(()))


def sequence(tensor: Tensor) -> int:
    """When a tensor was computed: a number that grows; 0 for one without a graph."""
    return 0 if tensor.grad_fn is None else autograd.sequence(tensor.grad_fn)
