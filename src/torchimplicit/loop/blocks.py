"""A large batch solved block by block, each small enough for the processor's cache and done when its own systems are."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.loop.gathering import joined
from torchimplicit.loop.settings import LoopSettings
from torchimplicit.loop.solve import SearchResult, solve
from torchimplicit.solvers.equations import Equations
from torchimplicit.solvers.method import Method

BLOCK_ENTRIES = 2**18  # of z, of a block


def solve_in_blocks(solver: Method, equations: Equations, z: Tensor, settings: LoopSettings) -> SearchResult:
    """:func:`solve` for the rows of each block in turn. A device other than the processor takes all rows at once."""
    batch, n = z.shape
    rows = max(1, BLOCK_ENTRIES // max(1, n)) if z.device.type == "cpu" else batch
    if batch <= rows:
        return solve(solver, equations, z, settings)
    found: list[SearchResult] = []
    counted = []
    for start in range(0, batch, rows):
        block = slice(start, min(start + rows, batch))
        part = equations.of_rows(block)
        own = solver.of_rows(block)
        found.append(solve(own, part, z[block], settings))
        counted.append((part, block.stop - block.start))
    equations.add(counted, batch)

    def whole(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in found])

    inverse = joined([part.inverse for part in found], lambda *parts: torch.cat(parts))
    return SearchResult(
        whole("z"), whole("status"), whole("steps"), whole("residual"), whole("error"), whole("bound"), inverse
    )
