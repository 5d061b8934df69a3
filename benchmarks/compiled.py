"""What is measured in a compiled training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

NOTE = "under `torch.compile(fullgraph=True)`"
IN_CPP = "the same with `options={'cpp_wrapper': True}`, which puts what lies between the kernels in C++ too"


def in_graph(solve: Callable[[], Any], compile: bool = True, **options: bool) -> Callable[[], Any]:
    """``solve`` as one graph, if asked for, with these options of inductor."""
    import torch

    return torch.compile(solve, fullgraph=True, options=dict(options) or None) if compile else solve
