"""Functions that differentiate or vmap inside, closing over parameters: energies, gradients of networks, loops over rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, jvp

import torchimplicit as ti

N, ROWS = 4, 3


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


WEIGHTS = randn(ROWS, N, seed=2)  # of the loss
Step = Callable[[Tensor, Tensor, Tensor], Tensor]
STEPS: dict[str, Step] = {
    "grad": lambda W, x, z: z - 0.2 * grad(lambda z: (0.5 * (z**2 + (z @ W).cosh().log()) - x * z).sum())(z),
    "jvp": lambda W, x, z: 0.3 * jvp(lambda y: (y @ W).sin(), (z,), (x,))[1] + x,
    "jacrev": lambda W, x, z: 0.05 * jacrev(lambda y: (y @ W).sin().sum(0))(z).sum(0) + x,
    "vmap": lambda W, x, z: torch.vmap(lambda row, x: torch.tanh(W @ row * 0.5 + x))(z, x),
    "vmap of grad": lambda W, x, z: torch.vmap(
        lambda row, x: 0.3 * grad(lambda y: (W @ y).sin().sum() + (y * x).sum().sin())(row) + x
    )(z, x),
}


def loss(step: Step, solver: str | None, W: Tensor, x: Tensor) -> Tensor:
    z = torch.zeros(ROWS, N, dtype=torch.float64)
    if solver is None:
        for _ in range(200):
            z = step(W, x, z)
    else:
        z = ti.fixed_point(lambda z: step(W, x, z), z, solver=solver, rtol=1e-12, max_steps=400).value
    return (z.square() * WEIGHTS).sum()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("solver", ["anderson", "newton"])
def test_plain_and_transformed_gradients_are_those_of_the_loop(name: str, solver: str) -> None:
    W, x = (randn(N, N, seed=0) / 5).requires_grad_(), randn(ROWS, N, seed=1).requires_grad_()
    truth = torch.autograd.grad(loss(STEPS[name], None, W, x), (W, x))
    plain = torch.autograd.grad(loss(STEPS[name], solver, W, x), (W, x))
    of = grad(lambda W, x: loss(STEPS[name], solver, W, x), argnums=(0, 1))
    W, x = W.detach(), x.detach()
    inside = of(W, x)
    batched = torch.vmap(of)(torch.stack([0.9 * W, W]), torch.stack([x, x]))
    for t, p, i, b in zip(truth, plain, inside, batched, strict=True):
        assert torch.allclose(p, t, atol=1e-9)
        assert torch.allclose(i, t, atol=1e-9)
        assert torch.allclose(b[1], t, atol=1e-9)
