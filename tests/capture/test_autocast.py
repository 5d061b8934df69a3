"""Autocast belongs to the function: as it was in the forward, wherever it was switched, at every later evaluation."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

import torchimplicit as ti

N = 4


def bfloat16(enabled: bool) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(N, N)


X = torch.linspace(-1, 1, N)


def gradient(cell: nn.Linear, inside: bool | None, around: bool) -> Tensor:
    """Of Σ z*² in the weight, with autocast on or off (or as it is) inside the function, and around the solve."""

    def f(z: Tensor) -> Tensor:
        with nullcontext() if inside is None else bfloat16(inside):
            return torch.tanh(0.5 * cell(z)).float() + X

    with bfloat16(around):
        z = ti.fixed_point(f, torch.zeros(N), rtol=1e-6 if inside is False or not (around or inside) else 1e-2).value
    assert z.dtype == torch.float32
    return torch.autograd.grad(z, cell.weight, 2 * z.detach())[0]


def test_switched_on_inside_the_function_it_does_not_matter_what_is_around() -> None:
    cell = linear()
    found = gradient(cell, True, False)
    assert torch.equal(gradient(cell, True, True), found)
    assert torch.allclose(found, gradient(cell, None, False), rtol=0.1, atol=0.05)


def test_switched_off_inside_the_function_it_is_off() -> None:
    cell = linear()
    assert torch.allclose(gradient(cell, False, True), gradient(cell, None, False), atol=1e-5)


def test_a_weight_used_by_the_solve_and_after_it_gets_both_gradients() -> None:
    cell = linear()
    with bfloat16(True):
        z = ti.fixed_point(lambda z: torch.tanh(0.5 * cell(z)) + X, torch.zeros(N), rtol=1e-2).value
        both = cell(z).float().sum()  # the cast weight must not come from the solve, where nothing was recorded
        alone = cell(z.detach()).float().sum()
    through, direct = (torch.autograd.grad(y, cell.weight, retain_graph=True)[0] for y in (both, alone))
    assert direct.abs().max() > 0.1
    assert not torch.allclose(through, direct)
