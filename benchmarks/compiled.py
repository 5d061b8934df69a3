"""What is measured in a compiled training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

NOTE = "under `torch.compile(fullgraph=True)`"


def in_graph(solve: Callable[[], Any], compile: bool = True) -> Callable[[], Any]:
    """``solve`` as one graph, if asked for."""
    import torch

    return torch.compile(solve, fullgraph=True) if compile else solve
