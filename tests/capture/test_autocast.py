"""Autocast belongs to the function: as it was in the forward, wherever it was switched, at every later evaluation."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import Any

import pytest
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


class Cell(nn.Module):
    """A contraction of 32 numbers; with ``casts`` it computes in bfloat16 whatever is around."""

    def __init__(self, casts: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(32, 32).to(torch.bfloat16 if casts else torch.float32)
        self.casts = casts

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        inner = self.linear(z.bfloat16()).float() if self.casts else self.linear(z)
        return torch.tanh(0.4 * inner + x)


def solved(cell: Cell, around: bool, **options: Any) -> tuple[Tensor, Tensor, Any]:
    """z*, the gradient of Σ z*² in x and the facts; no warning is allowed."""
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with bfloat16(around):
            z, info = ti.fixed_point(cell, torch.zeros_like(x), (x,), batch_ndim=1, **options)
        (grad,) = torch.autograd.grad(z.square().sum(), x)
    return z.detach(), grad, info


@pytest.mark.parametrize("casts", [False, True])
@pytest.mark.parametrize("solver", [None, "anderson", "picard", "newton", "newton_krylov", "broyden"])
def test_the_default_tolerance_is_one_that_half_precision_can_meet(solver: str | None, casts: bool) -> None:
    z, grad, info = solved(Cell(casts), not casts, solver=solver)
    exact, its_gradient, _ = solved(Cell(), False, rtol=1e-6)
    assert info.converged.all()
    assert info.evaluations <= 8
    assert info.adjoint.converged.all()
    assert torch.allclose(z, exact, atol=0.05)
    assert torch.linalg.vector_norm(grad - its_gradient) < 0.05 * torch.linalg.vector_norm(its_gradient)


class Switching(Cell):
    """It switches autocast on itself, by a decorator or in its code."""

    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return super().forward(z, x)


class SwitchingInside(Cell):
    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        with bfloat16(True):
            return super().forward(z, x).float()


@pytest.mark.parametrize("kind", [Switching, SwitchingInside])
def test_a_cell_that_switches_autocast_on_itself(kind: type[Cell]) -> None:
    z, _, info = solved(kind(), False)
    assert info.converged.all()
    assert info.evaluations <= 8
    assert torch.allclose(z, solved(Cell(), False, rtol=1e-6)[0], atol=0.05)


def test_a_tolerance_that_is_given_is_taken_at_its_word() -> None:
    loose, tight = (solved(Cell(), True, rtol=rtol)[2] for rtol in (0.3, 0.02))
    assert loose.evaluations < tight.evaluations


def test_what_does_not_depend_on_z_may_be_of_half_precision() -> None:
    linear, x = linear_of(32), torch.ones(32)
    z, info = ti.fixed_point(lambda z, y: torch.tanh(0.4 * linear(z) + y.float()), 0 * x, (x.bfloat16(),))
    assert info.converged
    assert torch.allclose(torch.tanh(0.4 * linear(z) + x), z, atol=1e-3)  # far below the rounding of bfloat16


def test_a_function_that_autocast_leaves_alone_keeps_its_tolerance() -> None:
    with bfloat16(True):
        z, _ = ti.root(lambda z: z.exp() - 2, torch.tensor(1.0))
    assert abs(float(z) - 0.6931472) < 1e-6


def test_inside_transforms() -> None:
    linear, x = linear_of(32), torch.randn(5, 32, generator=torch.Generator().manual_seed(1))

    def solve(x: Tensor) -> tuple[Tensor, Tensor]:
        z, info = ti.fixed_point(lambda z: torch.tanh(0.4 * linear(z) + x), torch.zeros_like(x))
        return z.sum(), info.converged

    with bfloat16(True):
        grads, converged = torch.vmap(torch.func.grad(solve, has_aux=True))(x)
    exact, _ = torch.vmap(torch.func.grad(solve, has_aux=True))(x)
    assert converged.all()
    assert torch.linalg.vector_norm(grads - exact) < 0.05 * torch.linalg.vector_norm(exact)


def linear_of(n: int) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(n, n)
