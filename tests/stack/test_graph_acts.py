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
    for f in (
        held,
        held_of_z,
        in_half_precision,
        through_a_view,
        added_up,
        a_copy_changed,
        assigned,
        pushed_forward,
    )
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


class Cell(nn.Module):
    """What is kept of its evaluations, and how it is computed, are given."""

    def __init__(self, act: Callable[[Tensor], object], step: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.act, self.step = act, step
        self.calls = 0

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        self.act(z)
        return self.step(z / 3) + x


CELL = Cell(lambda z: None)
LAYER = ti.nn.FixedPoint(CELL, solver="picard", rtol=1e-12)
SEEN: list[Tensor] = []

WITHIN: dict[str, Callable] = {
    "torch.func.grad or vjp": torch.func.grad(lambda y: (y**4 / 4 + y**2).sum()),
    "torch.func.vmap": torch.vmap(lambda y: y**3 + y),
    "torch.func's transforms": lambda z: torch.vmap(torch.func.hessian(lambda y: (y**4).sum()))(z).sum(-1) + z,
    "torch.autograd.grad": lambda z: torch.autograd.grad((z**4).sum(), z, create_graph=True)[0] + z,
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
def test_a_checkpoint_within_the_function_is_left_out_and_one_within_that() -> None:
    lin = torch.nn.Linear(3, 3, dtype=D)

    def block(y: Tensor) -> Tensor:
        return torch.tanh(lin(y)) + checkpoint(torch.sin, y, use_reentrant=False)

    def solve(x: Tensor) -> Tensor:
        g = lambda z: z + checkpoint(block, z, use_reentrant=False) / 3 - x  # noqa: E731
        return ti.root(g, torch.zeros_like(x), batch_ndim=1)[0]

    torch._dynamo.reset()
    model = torch.compile(solve, fullgraph=True, backend="aot_eager")
    x = torch.rand(4, 3, dtype=D)
    torch.testing.assert_close(value_and_gradient(model, x), value_and_gradient(solve, x), rtol=1e-7, atol=1e-7)


def fixed_point(cell: nn.Module) -> ti.nn.FixedPoint:
    return ti.nn.FixedPoint(cell, solver="picard", rtol=1e-12)


OF_LAYERS: dict[str, tuple[Callable, str]] = {
    "a layer within a cell": (fixed_point(Cell(lambda z: None, LAYER)), "a layer within the cell of another"),
    "a checkpointed layer": (lambda x: checkpoint(LAYER, x, use_reentrant=False), "a solve within a checkpoint"),
    "a cell that appends": (fixed_point(Cell(SEEN.append)), "changes something outside of it"),
    "a cell that keeps": (fixed_point(Cell(lambda z: setattr(CELL, "last", z))), "changes something outside of it"),
    "a cell that counts": (
        fixed_point(Cell(lambda z: setattr(CELL, "calls", CELL.calls + 1))),
        "changes something outside of it",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("which", OF_LAYERS)
def test_what_a_graph_cannot_hold_of_layers_is_told_and_runs_in_plain_code_otherwise(which: str) -> None:
    model, reason = OF_LAYERS[which]
    torch._dynamo.reset()
    with pytest.raises(Exception, match=reason):
        torch.compile(lambda x: model(x), fullgraph=True, backend="aot_eager")(inputs().requires_grad_())
    found = value_and_gradient(torch.compile(lambda x: model(x) + 1, backend="aot_eager"), inputs())
    expected = value_and_gradient(lambda x: model(x) + 1, inputs())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_a_cell_that_keeps_running_statistics_is_refused_by_name() -> None:
    torch._dynamo.reset()
    layer = fixed_point(Cell(nn.BatchNorm1d(3, dtype=D)))
    with pytest.raises(Exception, match=r"BatchNorm in training mode.*num_batches_tracked"):
        torch.compile(layer, fullgraph=True, backend="aot_eager")(inputs())


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_a_weight_that_is_computed_is_so_once_for_each_solve(training: bool) -> None:
    linear = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3, dtype=D))
    for _ in range(300):
        linear(inputs())  # lets its power iteration settle
    layer = fixed_point(Cell(lambda z: None, linear)).train(training)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    weight = linear.parametrizations.weight.original
    found, expected = (
        torch.autograd.grad(f(inputs()).square().sum(), [weight, linear.bias]) for f in (compiled, layer)
    )
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_a_compiled_layer_can_be_checkpointed() -> None:
    torch._dynamo.reset()
    layer = torch.compile(LAYER, fullgraph=True, backend="aot_eager")
    found = value_and_gradient(lambda x: checkpoint(layer, x, use_reentrant=False), inputs())
    torch.testing.assert_close(found, value_and_gradient(LAYER, inputs()), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_a_layer_in_a_branch_or_in_a_repeated_region_keeps_no_facts() -> None:
    region = torch.compiler.nested_compile_region(lambda x: LAYER(x))
    LAYER.last_info = None
    for model, plain in (
        (lambda x: torch.cond(x.sum() > 0, LAYER, torch.sin, (x,)), LAYER),
        (lambda x: region(region(x)), lambda x: LAYER(LAYER(x))),
    ):
        torch._dynamo.reset()
        found = value_and_gradient(torch.compile(model, fullgraph=True, backend="aot_eager"), inputs())
        assert LAYER.last_info is None
        torch.testing.assert_close(found, value_and_gradient(plain, inputs()), rtol=1e-9, atol=1e-9)
        LAYER.last_info = None


@pytest.mark.slow
def test_no_systems_have_no_gradient() -> None:
    torch._dynamo.reset()
    solve = torch.compile(lambda x: inner(x), fullgraph=True, backend="aot_eager")
    x = torch.zeros(0, 3, dtype=D, requires_grad=True)
    (grad,) = torch.autograd.grad(solve(x).sum(), x)
    assert grad.shape == (0, 3)


@pytest.mark.slow
def test_one_argument_without_its_tuple_is_refused() -> None:
    torch._dynamo.reset()
    model = torch.compile(
        lambda x: ti.root(lambda z, x: z - x, torch.zeros_like(x), x)[0], fullgraph=True, backend="aot_eager"
    )
    with pytest.raises(Exception, match="args"):
        model(inputs())
