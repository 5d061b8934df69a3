"""One rank of the data-parallel test: python ddp_worker.py RANK FOLDER [compiled]."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from layers import batch, layer  # type: ignore[import-not-found]  # run as a script, beside layers.py
from torch.nn.parallel import DistributedDataParallel

SCALES = (0.01, 2.0)


def main(rank: int, folder: str, compiled: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    module = layer("picard")
    step = torch.compile(module, fullgraph=True, backend="aot_eager") if compiled else module
    parallel = DistributedDataParallel(step)
    x = batch(seed=1) * SCALES[rank]
    for _ in range(2):  # the second step would find parameters that were not reduced in the first
        parallel.zero_grad()
        parallel(x).square().sum().backward()
    torch.save(([p.grad for p in module.parameters()], module.last_info.steps.max()), f"{folder}/{rank}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], compiled=sys.argv[3:] == ["compiled"])
