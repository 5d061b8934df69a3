"""Data-parallel training on two processes that need different numbers of steps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .layers import assert_same, batch, gradients, layer

SCALES = (0.01, 2.0)  # of each rank's inputs, as in the worker


@pytest.mark.parametrize("how", [[], pytest.param(["compiled"], marks=pytest.mark.slow)], ids=["plain", "compiled"])
def test_two_ranks_average_the_gradients_of_their_own_solves(tmp_path: Path, how: list[str]) -> None:
    worker = Path(__file__).with_name("ddp_worker.py")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(worker), str(rank), str(tmp_path), *how], env=environment, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    try:
        for process in ranks:
            _, errors = process.communicate(timeout=300 if how else 60)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in ranks:  # one that has failed leaves the other waiting
            process.kill()
    (first, few), (second, many) = (torch.load(tmp_path / str(rank)) for rank in range(2))
    module = layer("picard")
    alone = [gradients(module, batch(seed=1) * scale)[:-1] for scale in SCALES]
    mean = [(a + b) / 2 for a, b in zip(*alone, strict=True)]
    assert few != many
    assert_same(first, mean)
    assert_same(second, mean)
