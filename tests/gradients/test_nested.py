"""An implicit layer inside the function of another one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import torchimplicit as ti

from .problems import randn

ZERO = torch.zeros(3, dtype=torch.float64)


def nested(W: Tensor, x: Tensor, solver: str = "anderson") -> Tensor:
    """The inner layer closes over the outer unknown and over W, the outer one over x."""

    def outer(z: Tensor) -> Tensor:
        inner = ti.fixed_point(lambda y: 0.4 * torch.sin(W @ y + z), ZERO, solver=solver, rtol=1e-13).value
        return torch.tanh(0.5 * inner + x)

    return ti.fixed_point(outer, ZERO, solver=solver, rtol=1e-13).value


def inputs() -> tuple[Tensor, Tensor]:
    return (randn(3, 3, seed=1) / 4).requires_grad_(), randn(3, seed=2).requires_grad_()


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["anderson", "newton"])
def test_its_derivatives_of_both_orders_are_exact(solver: str) -> None:
    assert gradcheck(lambda W, x: nested(W, x, solver), inputs(), check_forward_ad=True)
    assert gradgradcheck(lambda W, x: nested(W, x, solver), inputs(), fast_mode=True)


def test_one_transform_agrees_with_plain_code() -> None:
    W, x = (t.detach() for t in inputs())
    xs = torch.stack([x, -x / 2])
    J = torch.autograd.functional.jacobian(lambda x: nested(W, x), x)
    assert torch.allclose(torch.func.jacrev(nested, 1)(W, x), J, atol=1e-8)
    assert torch.allclose(torch.vmap(nested, (None, 0))(W, xs), torch.stack([nested(W, x) for x in xs]), atol=1e-9)


def test_the_inner_layers_tensors_are_those_of_their_own_turn() -> None:
    W, x = inputs()
    loss = torch.zeros((), dtype=torch.float64)
    Ws = [(W * k).detach().requires_grad_() for k in (0.5, 1.0)]
    for V in Ws:
        loss = loss + nested(V, x).square().sum()
    loss.backward()
    for V in Ws:
        (alone,) = torch.autograd.grad(nested(V, x).square().sum(), V)
        assert torch.allclose(V.grad, alone, atol=1e-9)


def test_an_energy_is_differentiated_inside_the_function() -> None:
    W, x = inputs()

    def layer(W: Tensor, x: Tensor) -> Tensor:
        def energy(z: Tensor) -> Tensor:
            return (W @ z).cosh().sum() / 3 + z.square().sum() - (x * z).sum()

        return ti.root(torch.func.grad(energy), ZERO, rtol=1e-13).value

    assert gradcheck(layer, (W, x))
    assert gradgradcheck(layer, (W, x), fast_mode=True)
