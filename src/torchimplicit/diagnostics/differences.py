"""A gradient against finite differences, in a few random directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

DIRECTIONS = 3


def passing_error(dtype: torch.dtype) -> float:
    """The relative error that passes: differences know about half of the digits."""
    return 30 * torch.finfo(dtype.to_real()).eps ** 0.5


def compare(
    value: Callable[[], Tensor], leaves: list[Tensor], gradient: list[Tensor], generator: torch.Generator
) -> tuple[float, float]:
    """Relative error of the gradient of ``value()`` in a few random directions, and the uncertainty of the differences.

    Central differences with steps h and h/2; their extrapolation is the truth, and what separates them its uncertainty.
    """
    h = torch.finfo(leaves[0].dtype).eps ** 0.25
    slopes, uncertainties, claims = [], [], []
    for _ in range(DIRECTIONS):
        direction = [_like(leaf, generator) for leaf in leaves]
        coarse, fine = (_central(value, leaves, direction, step) for step in (h, h / 2))
        slopes.append((4 * fine - coarse) / 3)
        uncertainties.append(abs(fine - coarse))
        claims.append(sum(torch.vdot(g.flatten(), d.flatten()).real.item() for g, d in zip(gradient, direction)))
    truth, claim = torch.tensor(slopes, dtype=torch.float64), torch.tensor(claims, dtype=torch.float64)
    size = max(truth.norm().item(), claim.norm().item())
    if size == 0:
        return 0.0, 0.0
    return (claim - truth).norm().item() / size, torch.tensor(uncertainties).norm().item() / size


def _central(value: Callable[[], Tensor], leaves: list[Tensor], direction: list[Tensor], h: float) -> float:
    with torch.no_grad():
        with _moved(leaves, direction, h):
            above = value().item()
        with _moved(leaves, direction, -h):
            below = value().item()
    return (above - below) / (2 * h)


@contextmanager
def _moved(leaves: list[Tensor], direction: list[Tensor], h: float) -> Iterator[None]:
    """Leaves moved in place, and put back to the bit."""
    kept = [leaf.detach().clone() for leaf in leaves]
    try:
        with torch.no_grad():
            for leaf, d in zip(leaves, direction):
                leaf.add_(d, alpha=h)
        yield
    finally:
        with torch.no_grad():
            for leaf, old in zip(leaves, kept):
                leaf.copy_(old)


def _like(leaf: Tensor, generator: torch.Generator) -> Tensor:
    """A random direction of the leaf's own size, so that every leaf is moved by the same fraction."""
    scale = leaf.detach().abs().square().mean().sqrt() if leaf.numel() else torch.zeros(())
    random = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype).to(leaf.device)
    return random * (scale + torch.finfo(leaf.dtype).eps ** 0.25)
