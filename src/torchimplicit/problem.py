"""A problem as it was posed: the user's function, its unknowns, how its root is searched, and what counts as found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from torchimplicit.autograd.products import Linearisation
from torchimplicit.autograd.transforms import values_hidden
from torchimplicit.capture.autocast import Autocast, full_precision
from torchimplicit.capture.capture import Captured, capture
from torchimplicit.capture.hoisting import Hoisted
from torchimplicit.capture.parametrised import cache_may_lack_graphs
from torchimplicit.capture.randomness import Frozen
from torchimplicit.capture.sharding import sharded_modules_refused
from torchimplicit.condition import Condition, Flat, Kind
from torchimplicit.layout import Layout
from torchimplicit.linear.memory import Memory
from torchimplicit.loop.search import Inside, Search
from torchimplicit.loop.settings import LoopSettings
from torchimplicit.loop.solve import SearchResult
from torchimplicit.private import pytree
from torchimplicit.private.autograd import changes_a_leaf, version
from torchimplicit.solution import Record, Solution, SolveStats
from torchimplicit.solvers.equations import Equations
from torchimplicit.status import OnFailure, Status, report
from torchimplicit.tolerance import Tolerance

KEEPS_GRAPH = 2**10  # entries of z up to which the evaluation that is recorded may serve the backward too


@dataclass(frozen=True)
class Problem:
    """What defines z*, and what was asked of the forward solve.

    flatten : (layout, name of the function) -> what flattens the function's output to (B, ·), raising where it does not fit z.
    batched : which leaves of args carry the batch dimension, where that is known.
    known : the solution, where it was found already.
    memory : what is known of the Jacobians of the condition, where that may be sparse.
    """

    kind: Kind
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    layout: Layout
    flatten: Callable[[Layout, str], Callable[[Any], Tensor]]
    search: Search
    tolerance: Tolerance
    max_steps: int
    on_failure: OnFailure
    has_aux: bool
    record: Record
    autocast: Autocast
    batched: tuple[bool, ...] | None = None
    known: Solution | None = None
    memory: Memory | None = None

    @cached_property
    def output(self) -> Callable[[Any], Tensor]:
        """Flattens what the user's function returns."""
        return self.flatten(self.layout, f"{self.kind.name}: the function")

    def value(self, out: Any) -> Tensor:
        """The flat value of what the user's function returned."""
        if not self.has_aux:
            return self.output(out)
        if not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(
                f"with has_aux=True the function must return (value, aux); it returned {type(out).__name__}."
            )
        return self.output(out[0])

    def residual(self, z: Tensor) -> Tensor:
        """The condition at z (B, n), evaluated as plain PyTorch code."""
        return self.kind.condition(self.function, z)

    def hoisted(self) -> Flat:
        """The user's function for the evaluations of one solve: what does not depend on z is computed once."""
        return partial(self._evaluated, Hoisted(self.fn))

    def part(self, rows: slice | Tensor) -> Flat:
        """The user's function for some systems of the batch, given the rows of those arguments that carry it."""
        assert self.batched is not None
        leaves, tree = pytree.tree_flatten(self.args)
        leaves = [leaf[rows] if batched else leaf for leaf, batched in zip(leaves, self.batched, strict=True)]
        args = pytree.tree_unflatten(leaves, tree)
        return replace(self, fn=Hoisted(self.fn), args=args, layout=self.layout.of_rows(rows)).function

    def function(self, z: Tensor) -> Tensor:
        """The user's function of flat unknowns, as plain PyTorch code: (B, n) -> (B, m), or (B,) for an objective."""
        return self._evaluated(self.fn, z)

    def _evaluated(self, fn: Callable[..., Any], z: Tensor) -> Tensor:
        argument = self.layout.argument(z)
        leaves = pytree.tree_leaves(argument)
        versions = [version(leaf) for leaf in leaves]
        try:
            with self.autocast.restored(), sharded_modules_refused(self.fn):
                value = self.value(fn(argument, *self.args))
        except RuntimeError as error:
            if changes_a_leaf(error):
                raise self._changes_z() from error
            raise
        if versions != [version(leaf) for leaf in leaves]:
            raise self._changes_z()
        return value

    def _changes_z(self) -> RuntimeError:
        return RuntimeError(
            f"{self.kind.name}: the function changes its argument z in place. Work on a copy: z = z.clone()."
        )

    def aux(self, z: Tensor) -> Any:
        """Auxiliary output at z, detached."""
        with torch.no_grad():
            return detached(self.fn(self.layout.argument(z.detach()), *self.args)[1])

    def capture(self, z: Tensor) -> tuple[Captured, Condition, Any, Linearisation | None]:
        """The condition as a pure function of explicit tensors, recorded at z, what the user's function returned there, and the
        linearised condition, if it is worth keeping.
        """
        condition = self.kind.condition if z.numel() <= KEEPS_GRAPH else None
        captured, out, linearised = capture(self.fn, z, self.layout.argument, self.args, self.value, condition)

        def function(z: Tensor, *tensors: Tensor) -> Tensor:
            return self.value(captured(self.layout.argument(z), tensors))

        return captured, Condition(function, self.kind, changed_since=captured.changed_since), out, linearised

    def equations(self, z: Tensor) -> Equations:
        """What a search from z may ask about the problem, in plain code."""
        return Equations(self.hoisted(), self.kind, self.part if self.batched is not None else None, memory=self.memory)

    def find(
        self, z0: Tensor, equations: Equations, inside: Inside | None = None
    ) -> tuple[Tensor, SolveStats, tuple[Tensor, ...]]:
        """The solution, the facts, and the inverse that the search leaves. Nothing is recorded. Failures are reported here."""
        if self.known is not None:
            return self.layout.flatten(self.known.value).detach(), SolveStats.of(self.known.info), ()
        if cache_may_lack_graphs():
            self.function(z0)
        self.watch(equations)
        with torch.no_grad(), full_precision(self.layout.device.type):
            settings = LoopSettings(self.tolerance, self.max_steps)
            found = self.search(equations, z0.detach(), settings, inside)
            inverse = self.search.inverse(found)
        return found.z, self.noted(found, equations), inverse

    def watch(self, equations: Equations) -> None:
        """Notice from the first evaluation on whether the function gives two answers for one z."""
        if not isinstance(self.fn, Frozen):
            equations.watch(self.layout.device)

    def noted(self, found: SearchResult, equations: Equations) -> SolveStats:
        """The facts of a search that has ended; its trace is kept and its failures are reported."""
        same = found.status.shape[0] == self.layout.batch
        batch_shape = self.layout.batch_shape if same else (-1, *self.layout.batch_shape)
        if found.trace is not None:
            self.record.trace = found.trace.reshape(len(found.trace), *batch_shape)
        self.record.tried = found.tried
        self.record.linear = "" if self.memory is None else self.memory.description
        self.record.solved_by = None if found.solved_by is None else found.solved_by.reshape(batch_shape)
        if not values_hidden():
            report(
                self.kind.name,
                found.status,
                found.error,
                found.bound,
                found.steps,
                self.on_failure,
                equations.remark,
            )
        counts = found.counts or (equations.evaluations, equations.products)
        return SolveStats.counted(found.status, found.steps, found.residual, found.error, *counts)

    def solution(self, z: Tensor, facts: SolveStats, aux: Any = None) -> Solution:
        """z (B, n) and the facts as the user sees them."""
        info = facts.info(self.layout.batch_shape, self.record, aux)
        if self.on_failure == "nan":
            converged = (facts.status == Status.CONVERGED).unsqueeze(-1)
            z = z + torch.where(converged, 0.0, torch.nan).to(
                z.dtype
            )  # which leaves it to the backward what its gradient is
        return Solution(self.layout.unflatten(z), info)


def detached(tree: Any) -> Any:
    """A pytree with its tensors detached."""
    return pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, tree)
