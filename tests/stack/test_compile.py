"""A model with an implicit layer compiles around the layer, once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchimplicit as ti

from .layers import N, assert_same, batch, gradients, layer


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


@pytest.mark.parametrize("solver", ["anderson", "newton"])
def test_trunk_and_head_compile_once_and_the_gradients_are_those_of_eager(solver: str) -> None:
    model = Model(solver)
    expected = gradients(model, batch())
    backend = Counting()
    compiled = torch.compile(model, backend=backend)
    assert_same(gradients(model, batch(), compiled), expected)
    assert backend.graphs == 2
    for seed in range(2, 7):
        gradients(model, batch(seed=seed), compiled)
    assert backend.graphs == 2


def test_a_function_that_calls_a_solver_compiles_around_it() -> None:
    backend = Counting()

    def f(x: Tensor) -> Tensor:
        y = x.sin() * 2
        z = ti.root(lambda z: z**3 + z - y, torch.zeros_like(y)).value
        return z.cos() + 1

    x = batch()[0].requires_grad_()
    assert torch.allclose(torch.compile(f, backend=backend)(x), f(x))
    assert backend.graphs >= 2


@pytest.mark.parametrize("solver", ["anderson", "newton"])
def test_a_compiled_cell_inside_the_layer(solver: str) -> None:
    module = layer(solver)
    expected = gradients(module, batch())
    module.cell = torch.compile(module.cell, backend=Counting())
    assert_same(gradients(module, batch()), expected)


@pytest.mark.parametrize("solve", [ti.minimize, ti.least_squares])
@pytest.mark.parametrize("inside", [False, True], ids=("compile", "compiled"))
def test_a_compiled_function_has_no_second_derivatives(solve: Any, inside: bool) -> None:
    def function(z: Tensor) -> Tensor:
        return ((z - 1) ** 2).sum() if solve is ti.minimize else z**2 - 1

    if inside:
        compiled = torch.compile(function, backend="aot_eager")
        with pytest.raises(RuntimeError, match="gives no second derivatives"):
            solve(lambda z: 2 * compiled(z.clone()), torch.ones(3))
    else:
        with pytest.raises(RuntimeError, match="gives no second derivatives"):
            solve(function, torch.ones(3), compile=True)
