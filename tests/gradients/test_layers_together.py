"""Layers in a chain, twice in one graph, and one inside another: derivatives of first and second order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import torchimplicit as ti

from .problems import TIGHT, randn

N = 2
ZERO = torch.zeros(N, dtype=torch.float64)


def inner_root(W: Tensor, z: Tensor) -> Tensor:
    return ti.root(lambda y: 2 * y + torch.tanh(W @ y) - z - W[0], ZERO, **TIGHT).value


def inner_fixed_point(W: Tensor, z: Tensor) -> Tensor:
    return ti.fixed_point(lambda y: torch.tanh(W @ y / 3 + z), ZERO, solver="newton", **TIGHT).value


def inner_minimum(W: Tensor, z: Tensor) -> Tensor:
    return ti.minimize(lambda y: (y - z).square().sum() + (W @ y).cosh().sum() / 9, ZERO, **TIGHT).value


def inner_linear(W: Tensor, z: Tensor) -> Tensor:
    return ti.linear_solve(3 * torch.eye(N, dtype=torch.float64) + W, z + W[1], rtol=1e-13).value


def inner_black_box(W: Tensor, z: Tensor) -> Tensor:
    @ti.implicit(lambda y, W, z: y**3 + y - (W @ z), vmap="sequential", rtol=1e-11)
    def solve(W: Tensor, z: Tensor) -> Tensor:
        y = torch.zeros_like(z)
        for _ in range(40):
            y = y - (y**3 + y - W @ z) / (3 * y**2 + 1)
        return y

    result: Tensor = solve(W, z)
    return result


INNER = [inner_root, inner_fixed_point, inner_minimum, inner_linear, inner_black_box]
Inner = Callable[[Tensor, Tensor], Tensor]


def inputs() -> tuple[Tensor, Tensor]:
    return (randn(N, N, seed=1) / 2).requires_grad_(), randn(N, seed=2).requires_grad_()


def nested(inner: Inner) -> Callable[[Tensor, Tensor], Tensor]:
    """The inner layer sees the outer unknown and the outer parameters."""

    def layer(W: Tensor, x: Tensor) -> Tensor:
        return ti.root(lambda z: z + inner(W, z * x.cos()) / 3 - x, ZERO, **TIGHT).value

    return layer


def elimination(inner: Inner) -> Callable[[Tensor, Tensor], Tensor]:
    """The same z by Newton's steps with dense Jacobians of the outer function, through autograd."""

    def layer(W: Tensor, x: Tensor) -> Tensor:
        def g(z: Tensor, W: Tensor, x: Tensor) -> Tensor:
            return z + inner(W, z * x.cos()) / 3 - x

        z = ti.root(g, ZERO, (W.detach(), x.detach()), **TIGHT).value.detach()
        for _ in range(3):  # from a root, three Newton steps with their Jacobians in the graph carry three derivatives
            J = torch.autograd.functional.jacobian(lambda z: g(z, W, x), z, create_graph=True)
            z = z - torch.linalg.solve(J, g(z, W, x))
        return z

    return layer


@pytest.mark.sampled(5)
@pytest.mark.parametrize("inner", INNER, ids=lambda f: f.__name__)
def test_a_nested_layer_of_every_class_has_exact_first_derivatives(inner: Inner) -> None:
    assert gradcheck(nested(inner), inputs(), check_forward_ad=True, fast_mode=True)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("inner", INNER, ids=lambda f: f.__name__)
def test_a_nested_layer_of_every_class_has_exact_second_derivatives(inner: Inner) -> None:
    W, x = inputs()
    v = randn(N, seed=3)

    def second(layer: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(layer(W, x) @ v, (W, x), create_graph=True)
        return torch.autograd.grad(sum((f.sin()).sum() for f in first), (W, x))

    for one, other in zip(second(nested(inner)), second(elimination(inner)), strict=True):
        assert torch.allclose(one, other, atol=1e-8)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("inner", INNER, ids=lambda f: f.__name__)
def test_a_nested_layer_of_every_class_is_the_same_in_one_transform(inner: Inner) -> None:
    layer = nested(inner)
    W, x = (t.detach() for t in inputs())
    xs = torch.stack([x, x / 2])
    J = torch.autograd.functional.jacobian(lambda y: layer(W, y), x)
    assert torch.allclose(torch.func.vjp(lambda y: layer(W, y), x)[1](J[0])[0], J.T @ J[0], atol=1e-8)
    assert torch.allclose(torch.func.jvp(lambda y: layer(W, y), (x,), (J[0],))[1], J @ J[0], atol=1e-8)
    assert torch.allclose(torch.vmap(layer, (None, 0))(W, xs), torch.stack([layer(W, y) for y in xs]), atol=1e-9)


@pytest.mark.sampled(10)
@pytest.mark.parametrize("inner", INNER, ids=lambda f: f.__name__)
@pytest.mark.parametrize("direct", [False, True], ids=["", "the inner layer closes over x itself"])
def test_a_nested_layer_of_every_class_is_the_same_in_nested_transforms(inner: Inner, direct: bool) -> None:
    def layer(W: Tensor, x: Tensor) -> Tensor:
        def g(z: Tensor) -> Tensor:
            factor = ti.root(lambda y: 3 * y + y.sin() - x - z, ZERO, **TIGHT).value if direct else x.cos()
            return z + inner(W, z * factor) / 3 - x

        return ti.root(g, ZERO, **TIGHT).value

    def loss(y: Tensor) -> Tensor:
        return (layer(W, y) ** 3).sum()

    W, x = (t.detach() for t in inputs())
    xs = torch.stack([x, x / 2])
    first = torch.stack([torch.autograd.functional.jacobian(loss, y) for y in xs])
    second = torch.stack([torch.autograd.functional.hessian(loss, y) for y in xs])
    assert torch.allclose(torch.vmap(torch.vmap(loss))(xs[None])[0], torch.stack([loss(y) for y in xs]), atol=1e-8)
    assert torch.allclose(torch.vmap(torch.func.jacrev(loss))(xs), first, atol=1e-8)
    assert torch.allclose(torch.func.jacfwd(loss)(x), first[0], atol=1e-8)
    assert torch.allclose(torch.func.grad(lambda xs: torch.vmap(loss)(xs).sum())(xs), first, atol=1e-8)
    assert torch.allclose(torch.func.hessian(loss)(x), second[0], atol=1e-7)
    assert torch.allclose(torch.vmap(torch.func.hessian(loss))(xs), second, atol=1e-7)


def cubic(z: Tensor, W: Tensor, x: Tensor) -> Tensor:
    return z + (W @ z) ** 3 / 5 - x


def test_a_chain_of_layers() -> None:
    def chain(W: Tensor, x: Tensor) -> Tensor:
        y = ti.root(cubic, ZERO, (W, x), **TIGHT).value
        y = ti.fixed_point(lambda z: torch.tanh(W.T @ z / 3 + y), ZERO, solver="newton", **TIGHT).value
        return ti.minimize(lambda z: (z - y).square().sum() + (W @ z).square().sum(), ZERO, **TIGHT).value

    assert gradcheck(chain, inputs(), check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(chain, inputs(), fast_mode=True)
    W, x = (t.detach() for t in inputs())
    J = torch.autograd.functional.jacobian(lambda x: chain(W, x), x)
    assert torch.allclose(torch.vmap(torch.func.jacrev(chain, 1), (None, 0))(W, x.expand(2, N)), J, atol=1e-8)


def test_the_same_layer_twice_in_one_graph() -> None:
    class Cell(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W = torch.nn.Parameter(inputs()[0].detach().clone())

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return cubic(z, self.W, x)

    layer = ti.nn.Root(Cell(), batch_ndim=0, **TIGHT)

    def twice(W: Tensor, x: Tensor) -> Tensor:
        both = torch.func.functional_call(layer, {"module.W": W}, (x,))
        return both + torch.func.functional_call(layer, {"module.W": W}, (both.sin(),)) * x

    assert gradcheck(twice, inputs(), fast_mode=True)
    assert gradgradcheck(twice, inputs(), fast_mode=True)
    x = inputs()[1]
    z = layer(x)
    ((z + layer(z.sin()) * x).sum()).backward()
    (expected,) = torch.autograd.grad(twice(layer.module.W, x).sum(), layer.module.W)
    assert torch.allclose(layer.module.W.grad, expected, atol=1e-10)


def test_two_backwards_through_one_solve_add_up() -> None:
    W, x = inputs()
    z = ti.root(cubic, ZERO, (W, x), **TIGHT).value
    first = torch.autograd.grad(z[0], (W, x), retain_graph=True)
    second = torch.autograd.grad(z[1], (W, x), retain_graph=True)
    both = torch.autograd.grad(z.sum(), (W, x))
    for a, b, c in zip(first, second, both, strict=True):
        assert torch.allclose(a + b, c, atol=1e-12)


@pytest.mark.slow
def test_three_layers_deep_closing_over_everything() -> None:
    def layer(W: Tensor, x: Tensor) -> Tensor:
        def middle(z: Tensor) -> Tensor:
            def innermost(y: Tensor) -> Tensor:
                return ti.root(lambda t: 4 * t + t.sin() - x - y - W[1] * z, ZERO, **TIGHT).value

            return ti.root(lambda y: 3 * y + innermost(y) - W[0] - x * z, ZERO, **TIGHT).value

        return ti.root(lambda z: z + middle(z) / 3 - x, ZERO, **TIGHT).value

    assert gradcheck(layer, inputs(), check_forward_ad=True)
    W, x = (t.detach() for t in inputs())
    xs = torch.stack([x, x / 2])
    J = torch.stack([torch.autograd.functional.jacobian(lambda y: layer(W, y), y) for y in xs])
    assert torch.allclose(torch.vmap(torch.func.jacrev(layer, 1), (None, 0))(W, xs), J, atol=1e-8)
    H = torch.autograd.functional.hessian(lambda y: (layer(W, y) ** 3).sum(), x)
    assert torch.allclose(torch.func.hessian(lambda y: (layer(W, y) ** 3).sum())(x), H, atol=1e-7)
