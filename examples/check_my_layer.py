"""Layers to check from the command line, in this directory:

torchimplicit check check_my_layer:tanh_layer check_my_layer:reaction
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import torchimplicit as ti


class Cell(nn.Module):
    """f(z, x) = tanh(W z + x), with W small enough to contract."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width, dtype=torch.float64)
        nn.init.normal_(self.mix.weight, std=0.5 / width**0.5)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.mix(z) + x)


def tanh_layer() -> tuple[Any, ...]:
    """A module of ti.nn, with inputs to try it on."""
    torch.manual_seed(0)
    layer = ti.nn.FixedPoint(Cell(20))
    return layer, torch.randn(8, 20, dtype=torch.float64)


def reaction() -> tuple[Any, ...]:
    """A function, a start, its arguments, what it defines, and keywords of the solve: equilibria of two reactions."""

    def g(z: Tensor, rate: Tensor) -> Tensor:
        a, b = z.unbind(-1)
        return torch.stack([a + rate * a * b - 1, b + rate * a**2 * b - 2], -1)

    rates = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
    return g, torch.ones(3, 2, dtype=torch.float64), (rates,), "root", {"batch_ndim": 1}
