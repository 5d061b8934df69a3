"""Two processes, each with rows of its own: the averaged gradient is that of all rows."""

import tempfile

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import torchimplicit as ti


class Cell(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(0.5 * self.linear(z) + x)


def made() -> tuple[ti.nn.FixedPoint, torch.Tensor]:
    """The same layer and the same rows in every process; the last eight are large, and take other numbers of steps."""
    torch.manual_seed(0)
    layer = ti.nn.FixedPoint(Cell(), rtol=1e-10)
    return layer, torch.randn(16, 4, dtype=torch.float64) * torch.tensor([0.01] * 8 + [2.0] * 8)[:, None]


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    layer, x = made()
    parallel = DistributedDataParallel(layer)
    parallel(x[8 * rank : 8 * rank + 8]).square().sum(1).mean().backward()
    print(f"process {rank}: {layer.last_info}")
    expected, x = made()
    expected(x).square().sum(1).mean().backward()
    torch.testing.assert_close(layer.cell.linear.weight.grad, expected.cell.linear.weight.grad, rtol=1e-7, atol=1e-10)
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(process, (folder,), nprocs=2)
