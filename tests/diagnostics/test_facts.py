"""The numbers that a training loop logs are those of the layers' last solves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torchimplicit as ti


class Cell(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.gain * z + x


def model(gain: float, **options: object) -> nn.Module:
    return nn.Sequential(nn.Identity(), ti.nn.FixedPoint(Cell(gain), solver="picard", **options))


def test_a_layer_that_was_not_called_says_nothing() -> None:
    assert ti.diagnostics.facts(model(0.5)) == {}


def test_forward_and_backward_are_told() -> None:
    network = model(0.5)
    loss = network(torch.ones(4, 3)).sum()
    info = network[1].last_info
    assert ti.diagnostics.facts(network) == {
        "1/steps": float(info.steps.max()),
        "1/error": float(info.error.max()),
        "1/failed": 0,
    }
    loss.backward()
    found = ti.diagnostics.facts(network)
    assert found["1/backward_steps"] == float(info.adjoint.steps.max())
    assert found["1/backward_failed"] == 0


def test_systems_that_failed_are_counted() -> None:
    network = model(0.99, max_steps=5)
    x = torch.ones(4, 3)
    x[0] = 0  # solved by its start
    with pytest.warns(ti.ConvergenceWarning):
        network(x)
    assert ti.diagnostics.facts(network)["1/failed"] == 3


def test_a_layer_that_is_the_model_has_the_name_of_its_class() -> None:
    layer = ti.nn.FixedPoint(Cell(0.5))
    layer(torch.ones(2, 2))
    assert "FixedPoint/steps" in ti.diagnostics.facts(layer)
