"""``randomness="frozen"``: one draw for a solve and its backward, as if the mask had been drawn outside and passed in args."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import torchimplicit as ti

from ..every_solver import GENERAL

N = 6
D = torch.float64
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
drop = nn.Dropout(0.4)
Mask = Callable[[Tensor], Tensor]


def tensors(device: str = "cpu") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    W = torch.randn(N, N, dtype=D, generator=generator) / 5
    return W.to(device).requires_grad_(), torch.randn(4, N, dtype=D, generator=generator).to(device).requires_grad_()


def step(z: Tensor, W: Tensor, x: Tensor, mask: Mask) -> Tensor:
    return torch.tanh(mask(z) @ W.T + x)


def frozen(W: Tensor, x: Tensor, seed: int = 3, **options: Any) -> Tensor:
    torch.manual_seed(seed)
    options = {"batch_ndim": 1, "rtol": 1e-12, "randomness": "frozen", **options}
    return ti.fixed_point(lambda z: step(z, W, x, drop), torch.zeros_like(x), **options).value


def given(W: Tensor, x: Tensor, seed: int = 3, **options: Any) -> Tensor:
    """The same with the mask drawn outside."""
    torch.manual_seed(seed)
    mask = drop(torch.ones_like(x))
    options = {"batch_ndim": 1, "rtol": 1e-12, **options}
    return ti.fixed_point(
        lambda z, mask: step(z, W, x, lambda z: z * mask), torch.zeros_like(x), (mask,), **options
    ).value


def gradients(z: Tensor, W: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(z.square().sum(), (W, x))


def assert_same(a: Any, b: Any) -> None:
    for p, q in zip(a, b, strict=True):
        assert torch.allclose(p, q, atol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("solver", [None, *GENERAL])
def test_value_and_gradient_are_those_with_the_mask_given(solver: str | None, device: str) -> None:
    W, x = tensors(device)
    a, b = frozen(W, x, solver=solver), given(W, x, solver=solver)
    assert torch.allclose(a, b, atol=1e-9)
    assert_same(gradients(a, W, x), gradients(b, W, x))


@pytest.mark.parametrize("adjoint", [ti.Unrolled(), ti.Unrolled(checkpoint=True), ti.OneStep(), ti.Phantom(3)])
def test_with_every_adjoint(adjoint: Any) -> None:
    W, x = tensors()
    assert_same(*(gradients(solve(W, x, adjoint=adjoint, solver="picard"), W, x) for solve in (frozen, given)))


@pytest.mark.slow
def test_derivatives_of_the_first_and_second_order_against_finite_differences() -> None:
    W, x = tensors()
    assert gradcheck(frozen, (W, x), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(frozen, (W, x))


@pytest.mark.parametrize("device", DEVICES)
def test_the_generator_advances_as_by_one_evaluation_and_the_backward_leaves_it(device: str) -> None:
    W, x = tensors(device)
    z = frozen(W, x)
    after = torch.rand(3, device=device)
    torch.manual_seed(3)
    drop(torch.ones_like(x))
    assert torch.equal(after, torch.rand(3, device=device))
    before = torch.get_rng_state()
    gradients(z, W, x)
    assert torch.equal(before, torch.get_rng_state())


def test_the_next_call_draws_others() -> None:
    x = tensors()[1]
    torch.manual_seed(0)
    layer = ti.nn.FixedPoint(Cell(), randomness="frozen")
    first, second = layer(x), layer(x)
    assert layer.last_info.converged.all()
    assert not torch.allclose(first, second)
    assert torch.equal(layer.eval()(x), layer(x))


class Cell(nn.Module):
    def __init__(self, recompute: bool = False) -> None:
        super().__init__()
        self.W = nn.Parameter(tensors()[0].detach().clone())
        self.drop = nn.Dropout(0.4)
        self.recompute = recompute

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        if self.recompute:
            result: Tensor = checkpoint(step, z, self.W, x, self.drop, use_reentrant=False)
            return result
        return step(z, self.W, x, self.drop)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_around_the_layer(reentrant: bool) -> None:
    layer, x = ti.nn.FixedPoint(Cell(), randomness="frozen", rtol=1e-12), tensors()[1]
    found = []
    for call in (layer, lambda x: checkpoint(layer, x, use_reentrant=reentrant)):
        torch.manual_seed(3)
        x.grad = None
        call(x).square().sum().backward()
        found.append(x.grad)
    W, x = tensors()
    found.append(gradients(given(W, x), W, x)[1])
    assert_same(found[:-1], found[1:])


def test_checkpointing_inside_the_cell() -> None:
    x = tensors()[1]
    layer = ti.nn.FixedPoint(Cell(recompute=True), randomness="frozen", rtol=1e-12)
    torch.manual_seed(3)
    found = torch.autograd.grad(layer(x).square().sum(), (layer.cell.W, x))
    W, x = tensors()
    assert_same(found, gradients(given(W, x), W, x))


def test_under_autocast() -> None:
    linear = nn.Linear(N, N)
    x = tensors()[1].detach().float()
    found = []
    for mask in (None, lambda: drop(torch.ones_like(x))):
        torch.manual_seed(3)
        m = None if mask is None else mask()
        with torch.autocast("cpu", torch.bfloat16):
            z = ti.fixed_point(
                lambda z: torch.tanh(0.3 * linear(drop(z) if m is None else z * m) + x),  # noqa: B023
                torch.zeros_like(x),
                batch_ndim=1,
                randomness="frozen",
            ).value
        found.append((z.detach(), torch.autograd.grad(z.square().sum(), linear.weight)[0]))
    assert_same(*found)


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "grad": lambda f, x: torch.func.grad(lambda x: f(x).square().sum())(x),
    "hessian": lambda f, x: torch.func.grad(lambda x: torch.func.grad(lambda x: f(x).square().sum())(x).sin().sum())(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x.cos(),))[1],
    "jacrev": lambda f, x: torch.func.jacrev(f, chunk_size=1)(x),
    "jacfwd": lambda f, x: torch.func.jacfwd(f, randomness="same")(x),
    "vmap": lambda f, x: torch.vmap(f, randomness="same")(torch.stack([x, x + 1])),
    "vmap of grad": lambda f, x: torch.vmap(torch.func.grad(lambda x: f(x).sin().sum()), randomness="same")(
        torch.stack([x, x + 1])
    ),
    "jacobian": lambda f, x: torch.autograd.functional.jacobian(f, x, vectorize=True),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_inside_transforms(name: str) -> None:
    W, x = (t.detach() for t in tensors())
    found = [TRANSFORMS[name](lambda x, solve=solve: solve(W, x, solver="newton"), x) for solve in (frozen, given)]
    assert torch.allclose(*found, atol=1e-9)


@pytest.mark.parametrize("randomness", ["different", "error"])
def test_a_vmap_of_other_masks_is_refused(randomness: str) -> None:
    W, x = (t.detach() for t in tensors())
    with pytest.raises(RuntimeError, match=r'randomness="same".*pass them in args'):
        torch.vmap(lambda x: frozen(W, x), randomness=randomness)(torch.stack([x, x + 1]))


def test_work_that_does_not_depend_on_z_draws_its_numbers_too() -> None:
    big = torch.randn(200, 200, dtype=D, generator=torch.Generator().manual_seed(0))

    def f(z: Tensor) -> Tensor:
        return torch.tanh(0.3 * drop(z) + (drop(big) @ big).mean(0) / 200)

    torch.manual_seed(3)
    z, info = ti.fixed_point(f, torch.zeros(200, dtype=D), randomness="frozen", solver="picard")
    assert info.converged
    torch.manual_seed(3)
    assert torch.allclose(f(z), z, atol=1e-6)


def test_other_problems() -> None:
    x = tensors()[1].detach()[0]
    torch.manual_seed(3)
    mask = drop(torch.ones_like(x))
    seeded = [
        lambda: ti.root(lambda z: drop(z) + z - x, 0 * x, randomness="frozen").value,
        lambda: (
            ti.minimize(
                lambda z: (drop(z) * z).sum() / 2 + z.square().sum() / 2 - (x * z).sum(), 0 * x, randomness="frozen"
            ).value
        ),
        lambda: ti.least_squares(lambda z: drop(z) + z - x, 0 * x, randomness="frozen").value,
        lambda: ti.continuation(lambda z, s: drop(z) + z - s * x, 0 * x, 0.0, 1.0, randomness="frozen").value,
        lambda: ti.multi_start(ti.root, lambda z: drop(z) + z - x, torch.stack([0 * x, x]), randomness="frozen").value,
    ]
    for solve in seeded:
        torch.manual_seed(3)
        assert torch.allclose(solve(), x / (mask + 1), atol=1e-6)


def test_only_two_values_are_known() -> None:
    with pytest.raises(ValueError, match=r"error.*frozen.*got 'same'"):
        ti.root(lambda z: z, torch.zeros(2), randomness="same")  # type: ignore[arg-type]
