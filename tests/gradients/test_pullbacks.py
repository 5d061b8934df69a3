"""Pullbacks that outlive the transform that made them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from .problems import FUNCTIONS, inputs

every_problem = pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
F = Callable[[Tensor, Tensor], Tensor]


@every_problem
def test_a_pullback_called_after_its_transform(f: F) -> None:
    W, x = (t.detach() for t in inputs())
    z, pullback = torch.func.vjp(f, W, x)
    J_W, J_x = torch.autograd.functional.jacobian(f, (W, x))
    v = torch.arange(1.0, z.numel() + 1, dtype=z.dtype).reshape(z.shape)
    for _ in range(2):
        for found, J in zip(pullback(v), (J_W, J_x), strict=True):
            assert torch.allclose(found, torch.tensordot(v, J, z.ndim), atol=1e-9)
    for found, J in zip(torch.vmap(pullback)(torch.stack([v, -2 * v])), (J_W, J_x), strict=True):
        assert torch.allclose(found[1], -2 * torch.tensordot(v, J, z.ndim), atol=1e-9)


@pytest.mark.sampled(3)
@every_problem
def test_a_pullback_can_be_differentiated_in_plain_code_and_in_another_transform(f: F) -> None:
    W, x = (t.detach() for t in inputs())

    def loss(x: Tensor) -> Tensor:
        z, pullback = torch.func.vjp(lambda x: f(W, x), x)
        return pullback(z.cos())[0].square().sum()

    def by_autograd(x: Tensor) -> Tensor:
        z = f(W, x)
        (g,) = torch.autograd.grad(z, x, z.cos(), create_graph=True)
        return g.square().sum()

    y = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(by_autograd(y), y)
    (plain,) = torch.autograd.grad(loss(y), y)
    assert torch.allclose(plain, expected, atol=1e-8)
    assert torch.allclose(torch.func.grad(loss)(x), expected, atol=1e-8)
    assert torch.allclose(torch.vmap(torch.func.grad(loss))(x.expand(2, -1))[1], expected, atol=1e-8)


@pytest.mark.sampled(3)
@every_problem
def test_a_pullback_of_a_vmap_and_a_pullback_of_a_pullback(f: F) -> None:
    W, x = (t.detach() for t in inputs())
    xs = torch.stack([x, x / 2])
    zs, pullback = torch.func.vjp(torch.vmap(f, (None, 0)), W, xs)
    found = pullback(torch.ones_like(zs))
    Ws = W.clone().requires_grad_()
    ys = xs.clone().requires_grad_()
    expected = torch.autograd.grad(sum(f(Ws, y).sum() for y in ys), (Ws, ys))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-8)
    v = torch.ones_like(zs[0])
    push = torch.func.vjp(lambda v: torch.func.vjp(lambda x: f(W, x), x)[1](v)[0], v)[1]
    assert torch.allclose(push(x)[0], torch.func.jvp(lambda x: f(W, x), (x,), (x,))[1], atol=1e-9)
