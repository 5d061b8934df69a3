"""Views in a solve inside torch.compile: of its arguments, among them, and of z."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import torchimplicit as ti
from torchimplicit.private.dynamo import AVAILABLE

from .graph_models import D, value_and_gradient

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="this PyTorch cannot have a loop around a function in a graph")

Solve = Callable[[Tensor], Tensor]
LINEAR = nn.Linear(4, 4, dtype=D)
CONV = nn.Conv1d(1, 1, 3, padding=1, dtype=D)
NORM = nn.LayerNorm(4, dtype=D)


def zeros(x: Tensor) -> Tensor:
    return torch.zeros_like(x[:, :2])


def coupled(z: Tensor, p: Tensor) -> Tensor:
    """The usual way to write a small system: components of z and of its parameters, stacked."""
    u, v = z[..., 0], z[..., 1]
    return torch.stack([p[..., 0] * u**3 + u - p[..., 1] + v / 10, v + torch.sin(u) / 5 - p[..., 2]], -1)


def energy(z: Tensor, p: Tensor) -> Tensor:
    return (z[..., 0] - p[..., 0]) ** 2 + (z[..., 1] - z[..., 0] * p[..., 1]) ** 2 + z[..., 0] ** 4


def in_blocks(z: Tensor, x: Tensor) -> Tensor:
    parts = [half @ LINEAR.weight[at, at] for half, at in zip(z.chunk(2, -1), (slice(2), slice(2, 4)), strict=True)]
    return torch.tanh(0.3 * torch.cat(parts, -1) + x + LINEAR.bias)


def cubes(z: Tensor, p: Tensor, q: Tensor) -> Tensor:
    return z**3 + z - p + q * p


def of_two_names(x: Tensor) -> Tensor:
    p, q = x.chunk(2, -1)
    return ti.root(lambda z: cubes(z, p, q), zeros(x), batch_ndim=1)[0]


SOLVES: dict[str, Solve] = {
    "components of an argument": lambda x: ti.root(coupled, zeros(x), (x,), batch_ndim=1)[0],
    "products": lambda x: ti.root(coupled, zeros(x), (x,), batch_ndim=1, solver="newton_krylov")[0],
    "two views": lambda x: ti.root(cubes, zeros(x), (x[:, :2], x[:, 2:]), batch_ndim=1)[0],
    "one twice": lambda x: ti.root(cubes, zeros(x), (x[:, :2], x[:, :2]), batch_ndim=1)[0],
    "two in a closure": of_two_names,
    "expanded": lambda x: ti.root(cubes, zeros(x), (x[:, :1].expand(-1, 2), x[:, :1]), batch_ndim=1)[0],
    "a start and an argument": lambda x: ti.root(
        lambda z, p: cubes(z, p[:, :2], p[:, 2:]), x[:, :2], (x,), batch_ndim=1
    )[0],
    "trees": lambda x: ti.root(
        lambda z, p: {"a": z["a"] ** 3 + z["a"] - p["u"] * z["b"], "b": z["b"] - p["v"]},
        {"a": zeros(x), "b": 0 * x[:, :1]},
        ({"u": x[:, :2], "v": x[:, 2:3]},),
        batch_ndim=1,
    )[0]["a"],
    "blocks of a weight": lambda x: ti.fixed_point(in_blocks, torch.zeros_like(x), (x,), batch_ndim=1, rtol=1e-12)[0],
    "a minimum": lambda x: ti.minimize(energy, zeros(x), (x,), batch_ndim=1)[0],
    "bounds": lambda x: ti.minimize(energy, zeros(x), (x,), batch_ndim=1, bounds=(None, x[:, 2:]))[0],
    "a fit": lambda x: ti.least_squares(lambda z, p: coupled(z, p) * p[..., 2:3], zeros(x), (x,), batch_ndim=1)[0],
    "a linear system": lambda x: ti.linear_solve(lambda v: 2 * v + v.flip(-1) * x[:, 2:] / 10, x[:, :2])[0],
}


def inputs(rows: int) -> Tensor:
    return torch.rand(rows, 4, dtype=D, generator=torch.Generator().manual_seed(rows)) + 0.5


def assert_one_graph_for_any_size(solve: Solve) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model = torch.compile(solve, fullgraph=True, backend=counter, dynamic=True)
    torch.testing.assert_close(
        value_and_gradient(model, inputs(5)), value_and_gradient(solve, inputs(5)), rtol=1e-7, atol=1e-7
    )
    made = counter.frame_count
    for rows in (7, 64):
        x = inputs(rows)
        torch.testing.assert_close(value_and_gradient(model, x), value_and_gradient(solve, x), rtol=1e-7, atol=1e-7)
    assert counter.frame_count == made


@pytest.mark.parametrize(
    "which", [pytest.param(name, marks=() if name == "two views" else pytest.mark.slow) for name in SOLVES]
)
def test_views_are_arguments_of_a_solve_in_a_graph_for_batches_of_any_size(which: str) -> None:
    assert_one_graph_for_any_size(SOLVES[which])


# Each of these has a derivative whose rule under torch's vmap makes the batch size a constant, or is near one that has.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "slice": lambda z: z * z[:, :1],
    "select": lambda z: z * z[:, 0].unsqueeze(-1),
    "chunk": lambda z: torch.cat([z.chunk(2, -1)[1], z.chunk(2, -1)[0] ** 2], -1),
    "index": lambda z: z[:, [1, 0, 3, 2]],
    "gather": lambda z: z.gather(-1, torch.argsort(z.detach(), -1)),
    "pad": lambda z: nn.functional.pad(z, (1, 0))[:, :-1],
    "diff": lambda z: torch.diff(z, dim=-1, prepend=z[:, :1] * 0),
    "convolution": lambda z: CONV(z.unsqueeze(1)).squeeze(1),
    "layer norm": lambda z: NORM(z),
    "prod": lambda z: z.prod(-1, keepdim=True) * z,
}


# The same of more unknowns than there are products written out in a graph.
WIDE: dict[str, Callable[[Tensor], Tensor]] = {
    "slice": lambda z: z * z[:, :1],
    "index_add": lambda z: torch.zeros_like(z).index_add(-1, torch.arange(20).flip(0), z),
    "sort": lambda z: z.sort(-1).values,
    "gelu": nn.functional.gelu,
    "pool": lambda z: nn.functional.avg_pool1d(z.unsqueeze(1), 3, 1, 1).squeeze(1),
    "abs": torch.abs,
    "cdist": lambda z: torch.cdist(z.unsqueeze(-1), torch.ones(20, 1, dtype=D)).sum(-1) / 20,  # whose rule is wrong
    "matrix product": lambda z: torch.tanh(z @ torch.ones(20, 20, dtype=D) / 20),
}


@pytest.mark.parametrize(
    "which", [pytest.param(name, marks=() if name == "gelu" else pytest.mark.slow) for name in WIDE]
)
def test_a_graph_of_many_unknowns_serves_batches_of_any_size(which: str) -> None:
    def solve(x: Tensor) -> Tensor:
        x = x.repeat(1, 5) + torch.linspace(0, 1, 20, dtype=D)
        return ti.root(
            lambda z: z**3 + 2 * z - x + WIDE[which](z) / 4, torch.full_like(x, 0.3), batch_ndim=1, rtol=1e-10
        )[0]

    assert_one_graph_for_any_size(solve)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["minimize", "least_squares", "bounds"])
def test_minima_of_many_unknowns_too(kind: str) -> None:
    def solve(x: Tensor) -> Tensor:
        x = x.repeat(1, 5) + torch.linspace(0, 1, 20, dtype=D)
        options = {"batch_ndim": 1, "rtol": 1e-10}
        if kind == "least_squares":
            return ti.least_squares(lambda z: torch.cat([z - x, z[:, 1:] * z[:, :-1] / 4], -1), x, **options)[0]
        bounds = {} if kind == "minimize" else {"bounds": (None, x.amin(-1, keepdim=True).expand_as(x) + 0.5)}
        return ti.minimize(lambda z: ((z - x) ** 2 + (z * z[:, :1]) ** 2 / 8).sum(-1), x, **options, **bounds)[0]

    assert_one_graph_for_any_size(solve)


@pytest.mark.slow
@pytest.mark.parametrize("which", FUNCTIONS)
@pytest.mark.parametrize("kind", ["root", "minimize"])
def test_whatever_the_function_does_its_graph_serves_batches_of_any_size(which: str, kind: str) -> None:
    f = FUNCTIONS[which]

    def solve(x: Tensor) -> Tensor:
        z0 = torch.full_like(x, 0.3)
        if kind == "root":
            return ti.root(lambda z: z**3 + 2 * z - x + f(z) / 4, z0, batch_ndim=1)[0]
        return ti.minimize(lambda z: ((z - x) ** 2 + f(z) ** 2 / 8).sum(-1), z0, batch_ndim=1)[0]

    assert_one_graph_for_any_size(solve)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["two views", "components of an argument", "bounds", "a fit"])
def test_exported_for_batches_of_any_size(which: str) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return SOLVES[which](x)

    sizes = {"x": {0: torch.export.Dim("rows", min=2, max=64)}}
    file = io.BytesIO()
    torch.export.save(torch.export.export(Model(), (inputs(3),), dynamic_shapes=sizes), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for rows in (3, 7):
        torch.testing.assert_close(loaded(inputs(rows)), SOLVES[which](inputs(rows)), rtol=1e-8, atol=1e-8)
