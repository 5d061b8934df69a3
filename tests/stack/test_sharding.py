"""Sharded modules inside a function are refused, before anything is solved or exchanged; around the layer they may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import torchimplicit as ti

from .layers import Cell, N, assert_same, batch, layer

pytest.importorskip("torch.distributed.fsdp")
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def whole(cell: nn.Module, mesh: DeviceMesh) -> nn.Module:
    return fully_shard(cell, mesh=mesh)


def in_part(cell: nn.Module, mesh: DeviceMesh) -> nn.Module:
    fully_shard(cell.linear, mesh=mesh)
    return cell


def the_first_way(cell: nn.Module, mesh: DeviceMesh) -> nn.Module:
    return FullyShardedDataParallel(cell, device_id=torch.device("cpu"))


def by_tensors(cell: nn.Module, mesh: DeviceMesh) -> nn.Module:
    return parallelize_module(cell, mesh, {"linear": ColwiseParallel()})


def count_calls(cell: nn.Module) -> list[int]:
    calls: list[int] = []
    cell.linear.register_forward_hook(lambda *_: calls.append(0))
    return calls


SOLVES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "a layer": lambda cell, x: ti.nn.FixedPoint(cell)(x),
    "a closure": lambda cell, x: ti.fixed_point(lambda z: cell(z, x), x, batch_ndim=1, solver="newton"),
    "a minimum": lambda cell, x: ti.minimize(lambda z: cell(z, x).square().sum(), x),
    "steps": lambda cell, x: ti.fixed_point(cell, x, (x,), adjoint=ti.Unrolled()),
    "a transform": lambda cell, x: torch.func.grad(lambda x: ti.fixed_point(cell, x, (x,)).value.sum())(x),
    "a condition": lambda cell, x: ti.implicit(lambda z, x: z - cell(z, x))(lambda x: x)(x),
}


@pytest.mark.parametrize("shard", [whole, in_part, the_first_way, by_tensors])
@pytest.mark.parametrize("name", SOLVES)
def test_sharded_cells_are_refused_before_they_compute(name: str, shard: Any, mesh: DeviceMesh) -> None:
    cell = Cell()
    calls = count_calls(cell)
    sharded = shard(cell, mesh)
    with pytest.raises(
        TypeError, match=r"(fully_shard has sharded|around a Cell|is a DTensor).*unsharded.*DistributedDataParallel"
    ):
        SOLVES[name](sharded, batch())
    assert not calls


def test_sharded_tensors_are_refused(mesh: DeviceMesh) -> None:
    W = distribute_tensor(torch.eye(N) / 2, mesh, [Replicate()])
    for solve in (
        lambda: ti.root(lambda z: z - W.full_tensor() @ z - 1, torch.zeros(N)),
        lambda: ti.root(lambda z, W: z - W.full_tensor() @ z - 1, torch.zeros(N), (W,)),
        lambda: ti.root(lambda z: z - 1, W),
    ):
        with pytest.raises(TypeError, match="DTensor"):
            solve()


class Model(nn.Module):
    """A layer among others, which may be sharded."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(N, N).double(), layer("picard")

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.layer(self.first(x))
        return z


def model() -> Model:
    torch.manual_seed(2)
    return Model()


def gradients(module: nn.Module) -> list[Tensor]:
    module(batch()).square().sum().backward()
    found = [p.grad for p in module.parameters()]
    return [g.full_tensor() if hasattr(g, "full_tensor") else g for g in found]


AROUND: dict[str, Callable[[Model, DeviceMesh], nn.Module]] = {
    "data parallel": lambda module, mesh: DistributedDataParallel(module),
    "another part sharded": lambda module, mesh: fully_shard(module.first, mesh=mesh) and module,
    "sharded as a whole": lambda module, mesh: fully_shard(module, mesh=mesh),
}


@pytest.mark.parametrize("name", AROUND)
def test_what_is_around_the_layer_may_be_parallel(name: str, mesh: DeviceMesh) -> None:
    assert_same(gradients(AROUND[name](model(), mesh)), gradients(model()))
