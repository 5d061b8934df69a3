"""Systems that have ended are put aside, so that the others no longer pay for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.solvers.equations import Equations, Solver

FEWER = 0.6  # the part of the systems that still runs when the others are put aside
LEAST = 256  # systems from which this is worth the copies


class Gathering:
    """Which systems of a batch are still in the loop.

    Possible where the rows of the function's tensors are known (``equations.part``), and with a solver whose state has the systems
    in the first dimension of every tensor, which says so by ``rowwise = True``.
    """

    def __init__(self, solver: Solver, equations: Equations, batch: int) -> None:
        self.possible = equations.part is not None and getattr(solver, "rowwise", False)
        self.whole = self.equations = equations
        self.batch = batch
        self._rows: Tensor | None = None
        self._aside: list[tuple[Tensor, ...]] = []
        self._parts: list[tuple[Equations, int]] = []

    def worthwhile(self, running: Tensor) -> bool:
        """Whether so many systems have ended that the rest goes on alone."""
        return self.possible and len(running) >= LEAST and 0 < int(running.sum()) <= FEWER * len(running)

    def keep(self, running: Tensor, results: tuple[Tensor, ...], variables: Any) -> Any:
        """Put the results of what has ended aside; the variables, any pytree, of what goes on."""
        rows = torch.arange(len(running), device=running.device) if self._rows is None else self._rows
        self._aside.append((rows[~running], *(result[~running] for result in results)))
        self._rows = rows[running]
        self.equations = self.whole.of_rows(self._rows)
        self._parts.append((self.equations, len(self._rows)))
        return pytree.tree_map_only(Tensor, lambda tensor: tensor[running] if tensor.ndim else tensor, variables)

    def all(self, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The results of every system in the order of the batch, from those of the last ones; their evaluations are counted."""
        if self._rows is None:
            return results
        self.whole.add(self._parts, self.batch)
        rows, *parts = (torch.cat(part) for part in zip(*self._aside, (self._rows, *results), strict=True))
        order = rows.argsort()
        return tuple(part[order] for part in parts)
