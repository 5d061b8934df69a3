"""Solves to be compiled or exported, and what is asked of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import torchimplicit as ti

D = torch.float64
A = torch.tensor([[1.2, 0.3], [-0.2, 0.9]], dtype=D)
T = torch.linspace(0, 1, 20, dtype=D)

Model = Callable[..., Any]


def root(x: Tensor, **options: Any) -> Any:
    return ti.root(lambda z: A @ z + 0.1 * z**3 - x, torch.zeros(2, dtype=D), **options)


def numbers(x: Tensor, **options: Any) -> Any:
    return ti.root(lambda z: z**3 + z - x, torch.ones(2, dtype=D), batch_ndim=1, **options)


def fixed_point(x: Tensor, **options: Any) -> Any:
    return ti.fixed_point(lambda z: torch.tanh(0.4 * A @ z + x), torch.zeros(2, dtype=D), **options)


def minimum(x: Tensor, **options: Any) -> Any:
    phi = lambda z: ((z - x) ** 4).sum() + (z**2).sum() + z.prod() / 10  # noqa: E731
    return ti.minimize(phi, torch.zeros(2, dtype=D), **options)


def fit(x: Tensor, **options: Any) -> Any:
    def r(z: Tensor) -> Tensor:
        return z[0] * torch.exp(-z[1] * T) - x[0] * torch.exp(-x[1] * T) - 0.01 * torch.sin(9 * T)

    return ti.least_squares(r, torch.ones(2, dtype=D), **options)


def compiled(model: Model, **options: Any) -> Model:
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, **{"backend": "aot_eager", **options})


def bounded(x: Tensor, **options: Any) -> Any:
    phi = lambda z: ((z - x) ** 2).sum() + (z**4).sum() / 10 + z.prod() / 3  # noqa: E731
    return ti.minimize(phi, torch.zeros(2, dtype=D), bounds=(-2.0, x - 0.5), **options)


def value_and_gradient(model: Model, *inputs: Tensor) -> tuple[Tensor, ...]:
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    z = model(*inputs)
    weights = torch.arange(1, z.numel() + 1, dtype=D).reshape(z.shape)
    grads = torch.autograd.grad((z * weights).abs().sum(), inputs, allow_unused=True)
    return (z.detach(), *[torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True)])


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear, self.norm = nn.Linear(3, 3), nn.LayerNorm(3)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(0.3 * self.linear(z) + self.norm(x))
