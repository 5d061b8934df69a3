"""Systems that have ended are put aside, so that the others no longer pay for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
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
        # Which rows went on, and the results of all until then, and their inverses.
        self._before: list[tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]] = []
        self._parts: list[tuple[Equations, int]] = []

    def pays(self, left: int, batch: int) -> bool:
        """Whether so many systems have ended that the rest goes on alone."""
        return self.possible and batch >= self.least and 0 < left <= FEWER * batch

    def keep(self, running: Tensor, results: tuple[Tensor, ...], inverse: tuple[Tensor, ...]) -> Tensor:
        """Put the results aside, and the tensors of the inverses, those of what has ended being final; which of the rows go on."""
        rows = running.nonzero().squeeze(-1)
        self._before.append((rows, results, inverse))
        self._rows = rows if self._rows is None else self._rows[rows]
        self.equations = self.whole.of_rows(self._rows)
        self._parts.append((self.equations, len(rows)))
        return rows

    def restart(self, rows: Tensor, z: Tensor, r: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The residual and the state of the systems that go on, whose iterates are z."""
        if self.rowwise:
            return take(rows, (r, state))
        return self.solver.restart(self.equations, z, take(rows, self.solver.remembered(state)))

    def all(
        self, results: tuple[Tensor, ...], inverse: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The results and the inverses of every system, from those of the last ones; their evaluations are counted."""
        if self._parts:
            self.whole.add(self._parts, self.batch)
        for rows, before, inverse_before in reversed(self._before):
            put = partial(_put, rows)
            results, inverse = tuple(map(put, before, results)), joined((inverse_before, inverse), put)
        return results, inverse


def joined(inverses: Sequence[tuple[Tensor, ...]], join: Callable[..., Tensor]) -> tuple[Tensor, ...]:
    """The tensors of one inverse, from those of the parts of a batch; none where a part has left none, or one of another form."""
    alike = len({len(inverse) for inverse in inverses}) == 1
    return tuple(join(*tensors) for tensors in zip(*inverses, strict=True)) if alike else ()


def _put(rows: Tensor, old: Tensor, new: Tensor) -> Tensor:
    return old.index_copy(0, rows, new)


def take(rows: Tensor, variables: T) -> T:
    """Those rows of every tensor of a pytree that has rows."""
    return pytree.tree_map_only(
        Tensor, lambda tensor: tensor.index_select(0, rows) if tensor.ndim else tensor, variables
    )
