"""Systems that have ended are put aside, so that the others no longer pay for them."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor

from torchimplicit.private import pytree
from torchimplicit.solvers.equations import Equations
from torchimplicit.solvers.method import Method

T = TypeVar("T")

FEWER = 0.6  # the part of the systems that still runs when the others are put aside
LEAST = 256  # systems from which this is worth the copies
LEAST_ENTRIES = 2**14  # the same, of their Jacobians, where the residual is evaluated once more


class Gathering:
    """Which systems of a batch are still in the loop.

    Possible where the rows of the function's tensors are known (``equations.part``), and with a solver whose state has the systems
    in the first dimension of every tensor, which says so by ``rowwise = True``, or whose ``restart`` makes a state of what it
    remembers, which has.
    """

    def __init__(self, solver: Method, equations: Equations, z: Tensor) -> None:
        self.solver, self.rowwise = solver, solver.rowwise
        self.possible = equations.part is not None and (self.rowwise or solver.has("restart"))
        self.batch, n = z.shape
        self.least = LEAST if self.rowwise else max(LEAST, LEAST_ENTRIES // max(1, n * n))
        self.whole = self.equations = equations
        self._rows: Tensor | None = None
        # Which rows went on, and the results of all until then.
        self._before: list[tuple[Tensor, tuple[Tensor, ...]]] = []
        self._parts: list[tuple[Equations, int]] = []

    def pays(self, left: int, batch: int) -> bool:
        """Whether so many systems have ended that the rest goes on alone."""
        return self.possible and batch >= self.least and 0 < left <= FEWER * batch

    def keep(self, running: Tensor, results: tuple[Tensor, ...]) -> Tensor:
        """Put the results aside, those of what has ended being final; which of the rows go on."""
        rows = running.nonzero().squeeze(-1)
        self._before.append((rows, results))
        self._rows = rows if self._rows is None else self._rows[rows]
        self.equations = self.whole.of_rows(self._rows)
        self._parts.append((self.equations, len(rows)))
        return rows

    def restart(self, rows: Tensor, z: Tensor, r: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The residual and the state of the systems that go on, whose iterates are z."""
        if self.rowwise:
            return take(rows, (r, state))
        return self.solver.restart(self.equations, z, take(rows, self.solver.remembered(state)))

    def all(self, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The results of every system, from those of the last ones; their evaluations are counted."""
        if self._parts:
            self.whole.add(self._parts, self.batch)
        for rows, before in reversed(self._before):
            results = tuple(old.index_copy(0, rows, new) for old, new in zip(before, results, strict=True))
        return results


def take(rows: Tensor, variables: T) -> T:
    """Those rows of every tensor of a pytree that has rows."""
    return pytree.tree_map_only(
        Tensor, lambda tensor: tensor.index_select(0, rows) if tensor.ndim else tensor, variables
    )
