"""A model with a solve in it is exported, also where derivatives are part of its forward."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchimplicit as ti
from torchimplicit.private.dynamo import AVAILABLE

from .graph_cases import black_box
from .graph_models import A, Cell, D, Model, bounded, numbers, root

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="this PyTorch cannot have a loop around a function in a graph")


def test_what_cannot_be_exported_is_refused_by_name() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return root(x, solver="pseudo_transient")[0]

    with pytest.raises(RuntimeError, match="root cannot be exported: solver='pseudo_transient'"):
        torch.export.export(Model(), (torch.ones(2, dtype=D),), strict=False)


class Solves(nn.Module):
    """A model in which derivatives are part of the forward."""

    def __init__(self, solve: Model) -> None:
        super().__init__()
        self.solve = solve

    def forward(self, x: Tensor) -> Any:
        return self.solve(x)[0]


def system(x: Tensor) -> Any:
    return ti.linear_solve(A + torch.diag_embed(x), x)


def product(x: Tensor) -> Any:
    return ti.linear_solve(lambda z: A @ z + x * z, x)


@pytest.mark.sampled(10)
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("solve", [numbers, system, product, black_box, bounded])
def test_what_takes_derivatives_is_exported(solve: Model, strict: bool) -> None:
    model, x = Solves(solve), torch.tensor([0.7, 1.3], dtype=D)
    program = torch.export.export(model, (x,), strict=strict)
    for inputs in (x, 2 * x):
        torch.testing.assert_close(program.module()(inputs), model(inputs), rtol=1e-7, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_model_is_saved_and_runs_with_other_batch_sizes(strict: bool) -> None:
    layer, x = ti.nn.FixedPoint(Cell()).eval(), torch.randn(4, 3)
    sizes = {"args": ({0: torch.export.Dim("batch", min=2, max=512)},)}
    with torch.no_grad():
        program = torch.export.export(layer, (x,), dynamic_shapes=sizes, strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch in (2, 9):
        x = torch.randn(batch, 3)
        torch.testing.assert_close(loaded(x), layer(x))
