"""Custom ``autograd.Function``s inside a function: every tensor given to one is seen, in every mode and nesting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti

N = 4
TIGHT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-13}
ZERO = torch.zeros(N, dtype=torch.float64)


class Scale(torch.autograd.Function):
    """z * w, written the old way."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(z, w)
        return z * w

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        z, w = ctx.saved_tensors
        return grad * w, grad * z


class ScaleForTransforms(torch.autograd.Function):
    """z * w, written so that torch.func can transform it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, w: Tensor) -> Tensor:
        return z * w

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        z, w = ctx.saved_tensors
        return grad * w, grad * z


class Sine(torch.autograd.Function):
    """sin z, whose derivative is another custom function's work."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.sin()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        result: Tensor = Scale.apply(grad, z.cos())
        return result


both_ways = pytest.mark.parametrize("function", [Scale, ScaleForTransforms])
every_solver = pytest.mark.parametrize("solver", ["anderson", "newton"])


def weights(seed: int = 0) -> Tensor:
    return torch.rand(N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) / 3


def solved(function: Any, w: Tensor, b: Tensor, solver: str | None = None) -> Tensor:
    """z = w z + b, which is b / (1 − w); w is captured."""
    return ti.fixed_point(lambda z: function.apply(z, w) + b, ZERO, solver=solver, **TIGHT).value


@both_ways
@every_solver
@pytest.mark.parametrize("made", [lambda w: w, torch.sin], ids=["leaf", "computed"])
def test_a_captured_tensor(function: Any, solver: str, made: Callable[[Tensor], Tensor]) -> None:
    w, b = weights().requires_grad_(), weights(seed=1).requires_grad_()
    found = torch.autograd.grad(solved(function, made(w), b, solver).square().sum(), (w, b))
    truth = torch.autograd.grad((b / (1 - made(w))).square().sum(), (w, b))
    assert torch.allclose(found[0], truth[0], atol=1e-9)
    assert torch.allclose(found[1], truth[1], atol=1e-9)


@both_ways
def test_an_argument(function: Any) -> None:
    w = weights().requires_grad_()
    z = ti.fixed_point(lambda z, w: function.apply(z, w) + 1, ZERO, (w,), **TIGHT).value
    z.sum().backward()
    assert torch.allclose(w.grad, 1 / (1 - w.detach()) ** 2, atol=1e-9)


@both_ways
def test_late_binding_of_a_tensor_without_gradient(function: Any) -> None:
    b = weights(seed=1).requires_grad_()
    ws = [weights(seed=k) for k in range(2, 5)]
    loss = torch.zeros((), dtype=torch.float64)
    for w in ws:
        loss = loss + ti.fixed_point(lambda z: function.apply(z, w) + b, ZERO, **TIGHT).value.square().sum()  # noqa: B023
    (found,) = torch.autograd.grad(loss, b)
    assert torch.allclose(found, sum(2 * b.detach() / (1 - w) ** 2 for w in ws), atol=1e-9)


@both_ways
def test_a_tensor_overwritten_before_the_backward_is_an_error(function: Any) -> None:
    w, b = weights(), weights(seed=1).requires_grad_()
    z = solved(function, w, b)
    w.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


@both_ways
def test_second_derivatives(function: Any) -> None:
    w, b = weights().requires_grad_(), weights(seed=1).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda w, b: solved(function, w, b, "newton"), (w, b))


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "grad": torch.func.grad,
    "jacrev of grad": lambda f: torch.func.jacrev(torch.func.grad(f)),
    "grad of every sample": lambda f: lambda w: torch.vmap(torch.func.grad(f))(torch.stack([w, w / 2, -w])),
}


@every_solver
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_inside_transforms(solver: str, transform: str) -> None:
    of, b = TRANSFORMS[transform], weights(seed=1)
    found = of(lambda w: solved(ScaleForTransforms, w, b, solver).square().sum())(weights())
    assert torch.allclose(found, of(lambda w: (b / (1 - w)).square().sum())(weights()), atol=1e-8)


def test_one_written_the_old_way_is_refused_inside_transforms() -> None:
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(lambda w: solved(Scale, w, weights()).sum())(weights())


@every_solver
def test_an_energy_differentiated_inside_runs_a_custom_backward(solver: str) -> None:
    W = (torch.randn(N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 4).requires_grad_()
    x = weights()

    def f(z: Tensor) -> Tensor:
        with torch.enable_grad():
            y = z if z.requires_grad else z.detach().requires_grad_()
            (force,) = torch.autograd.grad(Sine.apply(W @ y).sum(), y, create_graph=True)
        return 0.4 * force + x

    z = ZERO
    for _ in range(200):
        z = f(z)
    (truth,) = torch.autograd.grad(z.square().sum(), W)
    (found,) = torch.autograd.grad(ti.fixed_point(f, ZERO, solver=solver, **TIGHT).value.square().sum(), W)
    assert torch.allclose(found, truth, atol=1e-9)


def test_torch_is_as_it_was_when_nothing_is_captured() -> None:
    def fails(z: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # when it is recorded
            raise ZeroDivisionError
        return z

    before = vars(torch.autograd.Function)["apply"]
    solved(Scale, weights().requires_grad_(), weights()).sum().backward()
    with pytest.raises(ZeroDivisionError):
        ti.fixed_point(fails, ZERO)
    assert vars(torch.autograd.Function)["apply"] is before
