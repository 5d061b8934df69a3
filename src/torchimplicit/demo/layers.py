"""The layers that are measured, each with a loss behind it, in whatever precision is asked for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import torchimplicit as ti
from torchimplicit.demo.train import Classifier


@dataclass(frozen=True)
class Layer:
    """An implicit layer and a loss of its output."""

    solve: Callable[..., ti.Solution]
    """takes the keywords of ``ti.fixed_point`` or ``ti.root``: solver, adjoint, tolerances, ..."""
    loss: Callable[[Tensor], Tensor]
    leaves: list[Tensor]
    """what the loss is differentiated in"""
    unknowns: int
    """per sample"""
    batch: int


def equilibrium(model: Classifier, images: Tensor, labels: Tensor, dtype: torch.dtype) -> Layer:
    """The trained deep equilibrium layer, for a batch of images: z = tanh(w ∗ z + b + u)."""
    with torch.no_grad():
        u = model.encoder(images).to(dtype)
    u.requires_grad_()
    cell = copy.deepcopy(model.layer.cell).to(dtype)
    head = copy.deepcopy(model.head).to(dtype)

    def solve(**keywords: Any) -> ti.Solution:
        return ti.fixed_point(cell, torch.zeros_like(u), (u,), batch_ndim=1, **keywords)

    return Layer(
        solve=solve,
        loss=lambda z: nn.functional.cross_entropy(head(z), labels),
        leaves=[u, *cell.parameters()],
        unknowns=u[0].numel(),
        batch=len(u),
    )


def coupled(z: Tensor, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """g(z, x) = z + ½ (A z)³ + ¼ exp(B z) − x, for z and x of shape (..., n); no matrix here is symmetric."""
    return z + (z @ A.mT) ** 3 / 2 + torch.exp(z @ B.mT) / 4 - x


def newton(dtype: torch.dtype, n: int = 12, batch: int = 64) -> Layer:
    """A batch of coupled cubic and exponential equations g(z, x) = 0, for Newton's method."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    A, B = normal(n, n) / n**0.5 / 3, normal(n, n) / n**0.5 / 3
    x, c = normal(batch, n) / 2, normal(batch, n)
    leaves = [x.requires_grad_(), A.requires_grad_(), B.requires_grad_()]

    def solve(**keywords: Any) -> ti.Solution:
        return ti.root(coupled, torch.zeros_like(x), (x, A, B), **{"solver": "newton", "batch_ndim": 1, **keywords})

    return Layer(solve=solve, loss=lambda z: (c * z).sum() / batch, leaves=leaves, unknowns=n, batch=batch)


def recurrent(
    gain: float, dtype: torch.dtype, n: int = 64
) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]:
    """f(z, x) = tanh(gain · W z + x) with a random W of spectral radius about 1; an x and a cotangent c of shape (n,).

    Its plain iteration contracts for a gain below 1 and is chaotic well above.
    """
    generator = torch.Generator().manual_seed(1)
    W = gain * torch.randn(n, n, generator=generator, dtype=torch.float64) / n**0.5
    x = torch.randn(n, generator=generator, dtype=torch.float64) / 32
    c = torch.randn(n, generator=generator, dtype=torch.float64) / n**0.5
    W, x, c = W.to(dtype), x.to(dtype), c.to(dtype)
    return (lambda z, x: torch.tanh(W @ z + x)), x, c


def fold(z: Tensor, x: Tensor) -> Tensor:
    """Two equations, z of shape (2,), x a number, whose two roots meet at x = 0, where the Jacobian is singular."""
    a, b = z.unbind()
    return torch.stack([a**2 + b / 2 - x, b - a**3 / 3])
