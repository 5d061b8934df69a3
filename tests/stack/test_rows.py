"""Layers of ti.nn take the first dimension of z as the batch: each row for itself, and what mixes rows is noticed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torchimplicit as ti

from .layers import Cell, N, batch

D = torch.float64


class Slow(nn.Module):
    """z → z + rate · (x − z): the rate of each row is its last entry of x."""

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return z + x[:, -1:] * (x - z)


def test_one_slow_row_among_many_is_not_averaged_away() -> None:
    x = torch.linspace(-1, 1, 1024 * 3, dtype=D).reshape(1024, 3)
    x[:, -1] = 0.9
    x[17, -1] = 0.01
    layer = ti.nn.FixedPoint(Slow(), solver="picard", max_steps=5000)
    z = layer(x)
    assert layer.last_info.converged.shape == (1024,)
    assert layer.last_info.converged.all()
    assert layer.last_info.steps[17] > 10 * layer.last_info.steps[16]
    assert torch.allclose(z, x, atol=1e-6)


@pytest.mark.parametrize("solver", [None, "picard", "anderson", "broyden", "newton", "newton_krylov"])
def test_an_answer_does_not_depend_on_the_neighbours(solver: str | None) -> None:
    torch.manual_seed(0)
    layer = ti.nn.FixedPoint(Cell(), solver=solver)
    x = batch(rows=8)
    x[3:] *= 3.0  # other neighbours need other numbers of steps
    together, steps = layer(x), layer.last_info.steps
    for k in range(len(x)):
        alone = layer(x[k : k + 1])
        assert layer.last_info.steps == steps[k]
        assert torch.allclose(alone[0], together[k], rtol=0, atol=1e-12)


def test_an_argmin_has_one_number_per_row() -> None:
    class Energy(nn.Module):
        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return ((z - x).square() + z**4).sum(-1)

    class Total(Energy):
        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return super().forward(z, x).sum()

    x = batch()
    layer = ti.nn.ArgMin(Energy())
    z = layer(x)
    assert layer.last_info.converged.shape == (3,)
    assert torch.allclose(z - x + 2 * z**3, torch.zeros_like(x), atol=1e-6)
    with pytest.raises(ValueError, match=r"one number per system.*batch_ndim=0.*ti\.nn"):
        ti.nn.ArgMin(Total())(x)
    assert torch.allclose(ti.nn.ArgMin(Total(), batch_ndim=0)(x), z, atol=1e-6)


class Graph(nn.Module):
    """Nodes in the first dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.A = torch.diag(torch.ones(4, dtype=D), 1) * 0.5  # each node hears the next one

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.A @ z + x)


class Attention(nn.Module):
    """Across the first dimension, which a batch would have to be."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.MultiheadAttention(N, 1, batch_first=True).double()

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return 0.5 * torch.tanh(self.layer(z, z, z, need_weights=False)[0] + x)


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(N, track_running_stats=False).double()

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return 0.2 * self.norm(z + x) + x


@pytest.mark.parametrize("module", [Graph, Attention, Normalised])
def test_rows_that_depend_on_each_other_are_noticed(module: type[nn.Module]) -> None:
    x = batch(rows=5)
    with pytest.raises(ValueError, match=rf"(?s){module.__name__}.*depends on other rows.*batch_ndim=0.*BatchNorm"):
        ti.nn.FixedPoint(module())(x)
    cell = module()
    layer = ti.nn.FixedPoint(cell, batch_ndim=0, rtol=1e-10)
    z = layer(x)
    assert layer.last_info.converged.shape == ()
    assert torch.allclose(cell(z, x), z, atol=1e-8)


def test_what_draws_numbers_or_is_not_defined_everywhere_is_not_accused() -> None:
    class Noisy(nn.Module):
        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return 0.25 * nn.functional.dropout(z, 0.5) + x

    class Narrow(nn.Module):
        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            if z.max() > 0.1:
                raise ValueError("too large")
            return 0.5 * z - 0.1

    for module, options in ((Noisy(), {"randomness": "frozen"}), (Narrow(), {"solver": "picard"})):
        layer = ti.nn.FixedPoint(module, **options)
        layer(batch())
        assert layer.last_info.converged.all()


def test_the_look_at_rows_is_taken_once_and_draws_nothing() -> None:
    calls: list[int] = []

    class Counted(Cell):
        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            calls.append(0)
            return super().forward(z, x)

    layer = ti.nn.FixedPoint(Counted(), solver="picard")
    before = torch.get_rng_state()
    counts = []
    with torch.no_grad():
        for _ in range(2):
            calls.clear()
            layer(batch())
            counts.append(len(calls) - int(layer.last_info.evaluations))
    assert counts == [2, 0]
    assert torch.equal(before, torch.get_rng_state())


def test_few_dimensions() -> None:
    class Cubic(nn.Module):
        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return z**3 + z - x

    x = torch.tensor([2.0, 10.0, -2.0], dtype=D)
    layer = ti.nn.Root(Cubic())
    assert torch.allclose(layer(x), torch.tensor([1.0, 2.0, -1.0], dtype=D))
    assert layer.last_info.steps.shape == (3,)  # one unknown in each row
    with pytest.raises(ValueError, match=r"no dimension.*batch_ndim=0"):
        layer(x[0])
    assert torch.allclose(ti.nn.Root(Cubic(), batch_ndim=0)(x[0]), torch.ones((), dtype=D))
    with pytest.raises(ValueError, match=r"entries of one vector.*batch_ndim=0"):
        ti.nn.FixedPoint(Cell())(batch()[0])
