"""Activation checkpointing and saved-tensor hooks change neither values nor gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..every_solver import GENERAL
from .layers import assert_same, batch, gradients, layer

every_solver = pytest.mark.parametrize("solver", GENERAL)


@every_solver
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_around_the_layer(solver: str, reentrant: bool) -> None:
    module = layer(solver)
    recomputed = gradients(module, batch(), lambda x: checkpoint(module, x, use_reentrant=reentrant))
    assert_same(recomputed, gradients(module, batch()))


@every_solver
def test_checkpointing_inside_the_cell(solver: str) -> None:
    plain, recomputing = layer(solver), layer(solver)
    recomputing.load_state_dict(plain.state_dict())
    recomputing.cell.recompute = True
    assert_same(gradients(recomputing, batch()), gradients(plain, batch()))


@every_solver
def test_saved_tensors_may_live_elsewhere(solver: str) -> None:
    module = layer(solver)

    def offloaded(x: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            z: Tensor = module(x)
        return z

    assert_same(gradients(module, batch(), offloaded), gradients(module, batch()))
