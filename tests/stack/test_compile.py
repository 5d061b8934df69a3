"""A model with an implicit layer compiles once: with the layer where this PyTorch can have it in a graph, around it where not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchimplicit as ti
from torchimplicit.private.autograd import is_compiled
from torchimplicit.private.dynamo import AVAILABLE

from ..test_contributing import examples
from .layers import N, assert_same, batch, gradients, layer

in_graph = pytest.mark.skipif(not AVAILABLE, reason="this PyTorch cannot have a loop around a function in a graph")


class Model(nn.Module):
    def __init__(self, solver: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(N, N).double()
        self.layer = layer(solver)
        self.head = nn.Linear(N, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.trunk(x))
        z = self.layer(h)
        return torch.sigmoid(self.head(z))


class Counting:
    """A backend that runs the graphs as they are and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., object]:
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_threads_that_solve_at_the_same_time_leave_the_compiler_as_it_was() -> None:
    """The first to begin ends before the second does."""
    first_is_in, second_is_in, first_is_out = threading.Event(), threading.Event(), threading.Event()

    def one(z: Tensor) -> Tensor:
        first_is_in.set()
        assert second_is_in.wait(60)
        return 0.5 * z + 1

    def other(z: Tensor) -> Tensor:
        second_is_in.set()
        assert first_is_out.wait(60)
        return 0.5 * z + 1

    def run(fn: Callable[..., Any]) -> None:
        x = torch.ones(1, requires_grad=True)
        ti.fixed_point(lambda z: fn(z) + 0 * x, torch.zeros(1))

    a, b = (threading.Thread(target=run, args=(fn,)) for fn in (one, other))
    torch._dynamo.reset()
    a.start()
    assert first_is_in.wait(60)
    b.start()
    a.join(60)
    first_is_out.set()
    b.join(60)
    out = torch.compile(lambda x: (x * 2).sin(), backend="aot_eager")(torch.ones(2, requires_grad=True))
    assert is_compiled(out.grad_fn)


@pytest.mark.parametrize("solver", ["anderson", "newton"])
def test_a_model_compiles_once_and_the_gradients_are_those_of_eager(solver: str) -> None:
    model = Model(solver)
    expected = gradients(model, batch())
    backend = Counting()
    compiled = torch.compile(model, backend=backend)
    assert_same(gradients(model, batch(), compiled), expected)
    graphs = backend.graphs
    assert graphs == (1 if AVAILABLE else 3)  # the trunk, the start of the solve, the head
    for seed in range(2, 7):
        gradients(model, batch(seed=seed), compiled)
    assert backend.graphs == graphs


def test_a_function_that_calls_a_solver_compiles() -> None:
    backend = Counting()

    def f(x: Tensor) -> Tensor:
        y = x.sin() * 2
        z = ti.root(lambda z: z**3 + z - y, torch.zeros_like(y)).value
        return z.cos() + 1

    x = batch()[0].requires_grad_()
    assert torch.allclose(torch.compile(f, backend=backend)(x), f(x))
    assert backend.graphs == (1 if AVAILABLE else 2)


@pytest.mark.parametrize("solver", ["anderson", "newton"])
def test_a_compiled_cell_inside_the_layer(solver: str) -> None:
    module = layer(solver)
    expected = gradients(module, batch())
    module.cell = torch.compile(module.cell, backend=Counting())
    assert_same(gradients(module, batch()), expected)


@pytest.mark.parametrize("solve", [ti.minimize, ti.least_squares])
def test_a_compiled_function_has_no_second_derivatives(solve: Any) -> None:
    def function(z: Tensor) -> Tensor:
        return ((z - 1) ** 2).sum() if solve is ti.minimize else z**2 - 1

    compiled = torch.compile(function, backend="aot_eager")
    with pytest.raises(RuntimeError, match="gives no second derivatives"):
        solve(lambda z: 2 * compiled(z.clone()), torch.ones(3))


PROBLEMS: dict[str, Callable[..., tuple[Any, ti.SolveInfo]]] = {
    "root": lambda x, **how: ti.root(lambda z, x: z**3 + z.roll(1, -1) - x, x.detach(), (x,), batch_ndim=1, **how),
    "fixed point": lambda x, **how: ti.fixed_point(lambda z: z.roll(1, -1).sin() / 2 + x, 0 * x, batch_ndim=1, **how),
    "minimum": lambda x, **how: ti.minimize(lambda z: ((z - x) ** 4 + z**2).sum(-1), 0 * x, batch_ndim=1, **how),
    "fit": lambda x, **how: ti.least_squares(
        lambda z: {"a": z - x, "b": (z * z.roll(1, -1)).sum(-1) / 2}, 0 * x, batch_ndim=1, **how
    ),
    "one unknown": lambda x, **how: ti.root(lambda z, x: z + z.exp() - x, 0 * x, (x,), batch_ndim=2, **how),
    "complex": lambda x, **how: ti.root(lambda z, x: z**2 - x * (1 + 1j), 1 + 0j * x, (x,), batch_ndim=2, **how),
    "auxiliary output": lambda x, **how: ti.root(lambda z, x: (z.exp() - x, z), 0 * x, (x,), has_aux=True, **how),
}


@in_graph
@pytest.mark.parametrize("problem", [pytest.param(name, marks=pytest.mark.slow) for name in PROBLEMS])
def test_a_compiled_solve_is_the_plain_one(problem: str) -> None:
    def run(compile: bool) -> tuple[Tensor, ...]:
        x = torch.linspace(0.5, 2, 12, dtype=torch.float64).reshape(4, 3).requires_grad_()
        z, info = PROBLEMS[problem](x, compile=compile, rtol=1e-12)
        assert info.converged.all()
        return z.detach(), *torch.autograd.grad(z.abs().square().sum(), x), info.steps

    z, gradient, steps = run(compile=True)
    plain = run(compile=False)
    torch.testing.assert_close((z, gradient), plain[:2], rtol=1e-9, atol=1e-12)
    assert (steps - plain[2]).abs().max() <= 1


@pytest.mark.slow
@in_graph
def test_a_graph_is_made_once_for_a_function_and_serves_what_it_captures() -> None:
    def solve(shift: Tensor, factor: float) -> Tensor:
        return ti.root(lambda z: z**3 + factor * z - shift, torch.zeros_like(shift), batch_ndim=1, compile=True).value

    shift = torch.linspace(1, 2, 5, dtype=torch.float64)
    solve(shift, 1.0)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for k in range(3):
        z = solve(shift + k, 1.0)
        torch.testing.assert_close(z**3 + z, shift + k)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    z = solve(shift, 2.0)  # a plain number that has changed is seen
    torch.testing.assert_close(z**3 + 2 * z, shift)


@pytest.mark.slow
@in_graph
def test_a_kind_of_problem_of_ones_own_compiles() -> None:
    a = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    z, info = examples()["balance"](lambda z: a * z, torch.zeros(3, dtype=torch.float64), compile=True)
    assert info.converged
    torch.testing.assert_close(z, (1 / a) / (1 / a).sum(), rtol=1e-8, atol=0)


@in_graph
def test_errors_of_a_compiled_function_are_those_of_a_plain_one() -> None:
    with pytest.raises(ValueError, match="must return tensors of z's shapes"):
        ti.root(lambda z: z[:2], torch.zeros(3), compile=True)


@pytest.mark.skipif(AVAILABLE, reason="this PyTorch can have a solve in a graph")
def test_an_older_torch_says_that_compile_has_no_effect_and_exports_no_solve() -> None:
    solve = lambda x, **how: ti.root(lambda z: z**3 + z - x, torch.zeros(3), **how)[0]  # noqa: E731
    x = torch.ones(3)
    with pytest.warns(UserWarning, match="compile=True has no effect: PyTorch"):
        z = solve(x, compile=True)
    torch.testing.assert_close(z, solve(x))
    module = layer("newton")
    with pytest.raises(RuntimeError, match="cannot have a loop"):
        torch.export.export(module, (batch(),), strict=False)
