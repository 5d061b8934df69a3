"""What does not depend on z is computed once per solve, and only where nobody can tell the difference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import torchimplicit as ti

B, N = 32, 256  # large enough to be worth while


def tensors() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(N, N, generator=generator) / N**0.5 / 2
    U = torch.randn(N, N, generator=generator) / N**0.5
    return W, U, torch.randn(B, N, generator=generator)


class Products(TorchDispatchMode):
    """Counts the matrix products that are computed."""

    count = 0

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        self.count += func is torch.ops.aten.mm.default
        return func(*args, **(kwargs or {}))  # type: ignore[operator]


@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden"])
def test_the_input_injection_is_computed_once(solver: str) -> None:
    W, U, x = tensors()
    with torch.no_grad():
        with Products() as products:
            z, info = ti.fixed_point(
                lambda z: torch.tanh(z @ W + x @ U), torch.zeros(B, N), solver=solver, batch_ndim=1
            )
        assert products.count == info.evaluations + 1
        y = x @ U
        expected, same = ti.fixed_point(lambda z: torch.tanh(z @ W + y), torch.zeros(B, N), solver=solver, batch_ndim=1)
    assert torch.equal(info.steps, same.steps)
    assert torch.equal(z, expected)


def buffers_written_in_place(W: Tensor, U: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
    def f(z: Tensor) -> Tensor:
        h = torch.zeros(B, 2 * N)
        h[:, :N] = z
        h[:, N:] = x
        return torch.tanh(h @ torch.cat([W, U]))

    return f


def result_changed_in_place(W: Tensor, U: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda z: torch.tanh((x @ U).add_(z @ W))


def view_of_a_result_changed(W: Tensor, U: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
    def f(z: Tensor) -> Tensor:
        y = x @ U
        half = y.view(2, -1)
        half += (z @ W).view(2, -1)
        return torch.tanh(y)

    return f


def data_written(W: Tensor, U: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
    buffer = torch.zeros(B, N)

    def f(z: Tensor) -> Tensor:
        buffer.data.copy_(z.cos() * 0.5)
        return buffer + 0.1 * x

    return f


def numpy_written(W: Tensor, U: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
    buffer = torch.zeros(B, N)

    def f(z: Tensor) -> Tensor:
        buffer.numpy()[:] = z.cos().numpy() * 0.5
        return buffer + 0.1 * x

    return f


def branch_on_z(W: Tensor, U: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda z: torch.tanh(z @ W + x @ (U if z.abs().max() < 0.3 else U / 2))


def another_tensor_each_time(W: Tensor, U: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
    inputs = [x, x.clone(), x.clone()]
    calls = [0]

    def f(z: Tensor) -> Tensor:
        calls[0] += 1
        return torch.tanh(z @ W + inputs[min(calls[0], 3) - 1] @ U)

    return f


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "make",
    [
        buffers_written_in_place,
        result_changed_in_place,
        view_of_a_result_changed,
        data_written,
        numpy_written,
        branch_on_z,
        another_tensor_each_time,
    ],
)
def test_what_changes_is_computed_again(make: Callable[..., Callable[[Tensor], Tensor]], mode: Callable) -> None:
    with mode():
        f = make(*tensors())
        z, info = ti.fixed_point(f, torch.zeros(B, N), solver="picard", batch_ndim=1)
        assert info.converged.all()
        residual = (f(z) - z).square().mean(-1).sqrt()
    torch.testing.assert_close(residual, info.residual, rtol=1e-2, atol=1e-7)


def test_noise_is_still_noticed() -> None:
    W, U, x = tensors()
    f = lambda z: torch.tanh(z @ W + torch.nn.functional.dropout(x) @ U)  # noqa: E731
    with torch.no_grad(), pytest.warns(ti.ConvergenceWarning, match="stochastic"):
        ti.fixed_point(f, torch.zeros(B, N), solver="picard", batch_ndim=1)


def test_a_function_that_differentiates_keeps_its_graph() -> None:
    W, U, x = tensors()
    x.requires_grad_()

    def f(z: Tensor) -> Tensor:
        with torch.enable_grad():
            energy = (torch.tanh(x @ U) * z.detach()).sum()
            (force,) = torch.autograd.grad(energy, x)
        return torch.tanh(z @ W) + 0.1 * force

    with torch.no_grad():
        z, info = ti.fixed_point(f, torch.zeros(B, N), solver="picard", batch_ndim=1)
        torch.testing.assert_close((f(z) - z).square().mean(-1).sqrt(), info.residual, rtol=1e-2, atol=1e-7)
