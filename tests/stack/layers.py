"""A deep equilibrium layer for the tests of the stack around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torchimplicit as ti

N = 5


class Cell(nn.Module):
    """An asymmetric contraction."""

    def __init__(self, recompute: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(N, N).double()
        self.recompute = recompute

    def step(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(0.5 * self.linear(z) + x)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        if self.recompute:
            result: Tensor = checkpoint(self.step, z, x, use_reentrant=False)
            return result
        return self.step(z, x)


def layer(solver: str = "anderson", cell: nn.Module | None = None, **options: Any) -> ti.nn.FixedPoint:
    torch.manual_seed(0)
    return ti.nn.FixedPoint(cell or Cell(), solver=solver, rtol=1e-12, **options)


def batch(rows: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(rows, N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradients(module: nn.Module, x: Tensor, call: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """Of Σ y² in the parameters and in x."""
    module.zero_grad()
    x = x.detach().clone().requires_grad_()
    (module if call is None else call)(x).square().sum().backward()
    return [p.grad.clone() for p in module.parameters()] + [x.grad]


def assert_same(a: list[Tensor], b: list[Tensor]) -> None:
    for p, q in zip(a, b, strict=True):
        assert torch.allclose(p, q, atol=1e-9)
