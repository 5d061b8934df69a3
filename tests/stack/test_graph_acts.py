"""Calls in a function that do more than return a result, inside torch.compile: they change tensors, enter contexts, make levels."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torchimplicit as ti
from torchimplicit.private.dynamo import AVAILABLE

from .graph_models import D, value_and_gradient

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="this PyTorch cannot have a loop around a function in a graph")

LINEAR = nn.Linear(3, 3, dtype=D)


def held(z: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        s = 2 * x + LINEAR(x)
    return z**3 + 3 * z - x + s / 4


def held_of_z(z: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = z.abs().amax(-1, keepdim=True)
        with torch.enable_grad():
            s = x.exp()
    return z**3 + 3 * z - s + scale / 10


def in_half_precision(z: Tensor, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = x @ torch.ones(3, 3) / 3
    return z**3 + 3 * z - h.to(z.dtype)


def through_a_view(z: Tensor, x: Tensor) -> Tensor:
    out = z**3 + 2 * z - x
    first = out[..., 0]
    first += x[..., 1]
    return out


def added_up(z: Tensor, x: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    total += z**3
    total += 2 * z
    total -= x
    return total


def a_copy_changed(z: Tensor, x: Tensor) -> Tensor:
    y = x * 1
    w = y[..., :1]
    y += z
    return z**3 + 3 * z - w - y / 10


def assigned(z: Tensor, x: Tensor) -> Tensor:
    out = torch.empty_like(z)
    out[:, 0] = z[:, 0] ** 3 + z[:, 0] - x[:, 0]
    out[:, 1:] = z[:, 1:] - x[:, 1:]
    return out


def pushed_forward(z: Tensor, x: Tensor) -> Tensor:
    return torch.func.jvp(lambda y: y**3 / 3 + y, (z,), (z + 1.0,))[1] - x


FUNCTIONS = {
    f.__name__: f
    for f in (held, held_of_z, in_half_precision, through_a_view, added_up, a_copy_changed, assigned, pushed_forward)
}


def inputs() -> Tensor:
    return torch.rand(4, 3, dtype=D, generator=torch.Generator().manual_seed(0))


def assert_as_in_plain_code(solve: Callable[[Tensor], Tensor], x: Tensor) -> None:
    torch._dynamo.reset()
    found = value_and_gradient(torch.compile(solve, fullgraph=True, backend="aot_eager"), x)
    torch.testing.assert_close(found, value_and_gradient(solve, x), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("which", [pytest.param(f, marks=() if f == "held" else pytest.mark.slow) for f in FUNCTIONS])
def test_what_a_function_does_beside_its_result_is_done_in_a_graph_too(which: str) -> None:
    x = inputs().float() if which == "in_half_precision" else inputs()
    assert_as_in_plain_code(lambda x: ti.root(FUNCTIONS[which], torch.full_like(x, 0.3), (x,), batch_ndim=1)[0], x)


@pytest.mark.slow
def test_an_objective_that_is_added_up_in_place() -> None:
    def energy(z: Tensor, x: Tensor) -> Tensor:
        total = torch.zeros(z.shape[0], dtype=z.dtype)
        total += ((z - x) ** 2).sum(-1)
        total += (z**4).sum(-1)
        return total

    assert_as_in_plain_code(lambda x: ti.minimize(energy, torch.zeros_like(x), (x,), batch_ndim=1)[0], inputs())


@pytest.mark.slow
def test_aux_has_no_gradient_where_it_is_an_argument() -> None:
    def solve(x: Tensor) -> Tensor:
        z, info = ti.root(lambda z, x: (z**3 + 2 * z - x, x), torch.zeros_like(x), (x,), batch_ndim=1, has_aux=True)
        return z + info.aux

    assert_as_in_plain_code(solve, inputs())


@pytest.mark.slow
def test_numbers_that_change_are_computed_with() -> None:
    def solve(x: Tensor, a: float) -> Tensor:
        return ti.root(lambda z: z**3 + a * z - x * math.sqrt(a), torch.zeros_like(x), batch_ndim=1)[0]

    torch._dynamo.reset()
    model = torch.compile(solve, fullgraph=True, backend="aot_eager")
    for a in (1.0, 2.0, 3.5):
        torch.testing.assert_close(model(inputs(), a), solve(inputs(), a))


def inner(x: Tensor) -> Tensor:
    return ti.root(lambda w: w**3 + w - x, torch.zeros_like(x), batch_ndim=1)[0]


WITHIN: dict[str, Callable] = {
    "torch.func.grad or vjp": torch.func.grad(lambda y: (y**4 / 4 + y**2).sum()),
    "torch.func.vmap": torch.vmap(lambda y: y**3 + y),
    "a solve": lambda z: z + inner(z),
}


@pytest.mark.slow
@pytest.mark.parametrize("which", WITHIN)
def test_what_cannot_be_within_the_function_is_refused_by_name(which: str) -> None:
    f = WITHIN[which]
    torch._dynamo.reset()
    solve = lambda x: ti.root(lambda z: f(z) - x, torch.full_like(x, 0.3), batch_ndim=1)[0]  # noqa: E731
    with pytest.raises(Exception, match=f"{which} within the function"):
        torch.compile(solve, fullgraph=True, backend="aot_eager")(inputs())
    broken = torch.compile(solve, backend="aot_eager")
    torch.testing.assert_close(value_and_gradient(broken, inputs()), value_and_gradient(solve, inputs()))


@pytest.mark.slow
def test_a_checkpoint_within_the_function_is_left_out() -> None:
    lin = torch.nn.Linear(3, 3, dtype=D)

    def solve(x: Tensor) -> Tensor:
        g = lambda z: z + checkpoint(lambda y: torch.tanh(lin(y)), z, use_reentrant=False) / 3 - x  # noqa: E731
        return ti.root(g, torch.zeros_like(x), batch_ndim=1)[0]

    torch._dynamo.reset()
    model = torch.compile(solve, fullgraph=True, backend="aot_eager")
    x = torch.rand(4, 3, dtype=D)
    torch.testing.assert_close(value_and_gradient(model, x), value_and_gradient(solve, x), rtol=1e-7, atol=1e-7)


@pytest.mark.slow
def test_a_checkpointed_solve_is_refused_by_name() -> None:
    torch._dynamo.reset()
    model = torch.compile(lambda x: checkpoint(inner, x, use_reentrant=False), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="a solve within a checkpoint"):
        model(inputs().requires_grad_())


@pytest.mark.slow
def test_one_argument_without_its_tuple_is_refused() -> None:
    torch._dynamo.reset()
    model = torch.compile(
        lambda x: ti.root(lambda z, x: z - x, torch.zeros_like(x), x)[0], fullgraph=True, backend="aot_eager"
    )
    with pytest.raises(Exception, match="args"):
        model(inputs())
