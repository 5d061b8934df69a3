"""torch.autograd.functional: its vectorised forward mode brings tangents in batches of autograd's own kind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import torchimplicit as ti

D = torch.float64
A = torch.tensor([[0.2, -0.3, 0.1], [0.4, 0.1, -0.2], [0.0, 0.3, 0.2]], dtype=D)


def root(x: Tensor) -> Tensor:
    return ti.root(lambda z, x: z + z**3 + x.sum() * (A @ z) - x, torch.zeros(3, dtype=D), (x,), rtol=1e-12).value


def fixed_point(x: Tensor) -> Tensor:
    return ti.fixed_point(lambda z, x: torch.tanh(A @ z + x), torch.zeros(3, dtype=D), (x,), rtol=1e-12).value


def linear(x: Tensor) -> Tensor:
    return ti.linear_solve(torch.eye(3, dtype=D) + A * x, x.flip(0)).value


@pytest.mark.parametrize("solve", [root, fixed_point, linear])
def test_vectorised_forward_mode_is_central_differences(solve: Callable[[Tensor], Tensor]) -> None:
    x = torch.tensor([0.5, 1.0, 2.0], dtype=D)
    moves = 1e-5 * torch.eye(3, dtype=D)
    differences = torch.stack([(solve(x + d) - solve(x - d)) / 2e-5 for d in moves], -1)
    found = torch.autograd.functional.jacobian(solve, x, vectorize=True, strategy="forward-mode")
    assert torch.allclose(found, differences, atol=1e-8)


def test_a_hessian_of_forward_mode_over_reverse() -> None:
    x = torch.tensor([0.5, 1.0, 2.0], dtype=D)

    def loss(x: Tensor) -> Tensor:
        return root(x).square().sum()

    def slope(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(loss(x), x)[0]

    moves = 1e-5 * torch.eye(3, dtype=D)
    differences = torch.stack([(slope(x + d) - slope(x - d)) / 2e-5 for d in moves])
    found = torch.autograd.functional.hessian(loss, x, vectorize=True, outer_jacobian_strategy="forward-mode")
    assert torch.allclose(found, differences, atol=1e-7)
