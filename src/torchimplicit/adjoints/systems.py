"""The two systems that the heart solves: the user's condition, and the linear systems in its Jacobian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from torchimplicit.adjoints.by_values import solve_by_values
from torchimplicit.adjoints.function import Saved, Solved
from torchimplicit.adjoints.in_graph import solve_in_graph
from torchimplicit.adjoints.posed import Derivative, Found, LinearSettings, Posed, Tiled
from torchimplicit.adjoints.sweep import Sweep
from torchimplicit.autograd.products import Linearisation
from torchimplicit.autograd.transforms import finished, occurs, tracing
from torchimplicit.condition import Condition
from torchimplicit.graph.reports import reported
from torchimplicit.linear.iteration import error_of
from torchimplicit.linear.solver import linear_status
from torchimplicit.solution import Record, SolveInfo, SolveStats
from torchimplicit.status import Status, report, unanswered

Find = Callable[[Condition, Tensor, Sequence[Tensor]], Solved]


@dataclass(frozen=True)
class ConditionSystem:
    """The user's condition, and the way its root is found.

    find : (condition, z0, tensors) -> root, facts and inverse: the forward solve.
    linearised : the condition linearised at the root, in z and in all tensors, where the forward solve has left that behind.
    """

    own_operator: ClassVar[bool] = True
    condition: Condition
    find: Find
    settings: LinearSettings
    batch_shape: torch.Size
    record: Record
    linearised: Linearisation | None = None

    def solve(self, z0: Tensor, tensors: Sequence[Tensor]) -> Solved:
        return self.find(self.condition, z0, tensors)

    def vmapped(
        self, size: int, dims: Sequence[int | None], z0: Tensor, tensors: Sequence[Tensor]
    ) -> tuple[ConditionSystem, Tensor, list[Tensor]]:
        larger = replace(self, condition=self.condition.vmapped(size, dims), linearised=None)
        return larger, z0.flatten(0, 1), list(tensors)

    def linear(
        self, transpose: bool, at: Saved, wanted: Sequence[int] = ()
    ) -> tuple[JacobianSystem, tuple[Tensor, ...]]:
        record, inverses = self.record if transpose else None, len(at.inverse)
        settings, shape = self.settings, self.batch_shape
        return JacobianSystem(self.condition, transpose, inverses, settings, shape, record, tuple(wanted)), at.flat


@dataclass(frozen=True)
class JacobianSystem:
    """A w = b with A = ∂g/∂z at z*, or its transpose. Its tensors are (b, z*, status of z*, *inverse, *tensors of g).

    wanted : the tensors of g whose gradient −wᵀ ∂g/∂x is asked for, where that is known.
    """

    own_operator: ClassVar[bool] = False  # its operator is the Jacobian of ``base``
    linearised: ClassVar[None] = None
    base: Condition
    transpose: bool
    inverses: int
    settings: LinearSettings
    batch_shape: torch.Size
    record: Record | None = None
    wanted: tuple[int, ...] = ()

    @property
    def condition(self) -> Condition:
        """A(z*, x) w − b as a function of everything, so that the derivative of the derivative is exact."""

        def residual(w: Tensor, b: Tensor, *rest: Tensor) -> Tensor:
            z, _, _, of_g = Saved.of(rest, self.inverses)
            posed = Posed(self.base, self.transpose, self.settings, b, z, None, of_g)
            return posed.operator().apply(w, self.transpose) - b

        return Condition(residual, Derivative(), changed_since=self.base.changed_since)

    def _posed(self, tensors: Sequence[Tensor]) -> Posed:
        b, *rest = tensors
        z, _, inverse, of_g = Saved.of(rest, self.inverses)
        tiled = Tiled(self.settings.inverse(inverse), inverse[0].shape[0], z.shape[0]) if inverse else None
        return Posed(self.base, self.transpose, self.settings, b, z, tiled, of_g)

    def vmapped(
        self, size: int, dims: Sequence[int | None], w0: Tensor, tensors: Sequence[Tensor]
    ) -> tuple[JacobianSystem, Tensor, list[Tensor]]:
        systems = w0.shape[1]

        def rows(t: Tensor, dim: int | None) -> Tensor:
            return (t.expand(size, *t.shape) if dim is None else t).flatten(0, 1)

        def tiles(t: Tensor, dim: int | None) -> Tensor:
            """An inverse that all share stays as it is: it then serves several right-hand sides."""
            if dim is None:
                return t
            return t.unsqueeze(1).expand(size, systems // t.shape[1], *t.shape[1:]).flatten(0, 2)

        last = 3 + self.inverses
        at = [rows(t, d) for t, d in zip(tensors[:3], dims[:3], strict=True)]
        inverse = [tiles(t, d) for t, d in zip(tensors[3:last], dims[3:last], strict=True)]
        larger = replace(self, base=self.base.vmapped(size, dims[last:]))
        return larger, w0.flatten(0, 1), [*at, *inverse, *tensors[last:]]

    def linear(
        self, transpose: bool, at: Saved, wanted: Sequence[int] = ()
    ) -> tuple[JacobianSystem, tuple[Tensor, ...]]:
        """The same operator again: this system's own solution plays no part in it."""
        return replace(self, transpose=self.transpose != transpose, record=None, wanted=()), at.tensors[1:]

    def solve(self, w0: Tensor, tensors: Sequence[Tensor]) -> Solved:
        w, facts = self._solved(tensors)
        return Solved(w, facts(), ())

    def vjp(self, tensors: Sequence[Tensor], linearised: Linearisation) -> Sequence[Tensor | None]:
        sweep = Sweep(linearised)
        w, _ = self._solved(tensors, sweep)
        if w is sweep.w:
            return sweep.grads
        w = -w  # under its own name: the last product then needs no more memory than those before
        return sweep.gradients(w)

    def _solved(self, tensors: Sequence[Tensor], sweep: Sweep | None = None) -> tuple[Tensor, Callable[[], SolveStats]]:
        """w and what makes the facts, from the linearisation that is to be swept in the end, or from one evaluation of g."""
        b, _, forward, *_ = tensors
        # A row without a root has no derivative: what is asked of it is reported, and the others go on.
        usable, refused, how = forward == Status.CONVERGED, None, self.settings.on_failure
        if not finished(usable) and occurs(unusable := ~usable if how == "nan" else unanswered(forward)):
            refused = unusable & (b != 0).any(-1)
            b = torch.where(unusable.unsqueeze(-1), 0, b)
        posed = self._posed((b, *tensors[1:]))
        found = solve_in_graph(posed) if tracing() else solve_by_values(posed, usable, self.wanted, sweep)
        causes = found.causes if refused is None else [*found.causes, (refused, Status.NONFINITE)]
        result = found.result
        w, status = result.x, None
        if not finished(result.converged) or any(occurs(mask) for mask, _ in causes):
            status = linear_status(result)
            for mask, cause in causes:
                status = torch.where(mask, cause, status)
            if how == "nan":  # of what is asked: a gradient of 0 goes on as 0
                asked = (tensors[0] != 0).any(-1, keepdim=True)
                w = torch.where((status == Status.CONVERGED).unsqueeze(-1), w, torch.where(asked, torch.nan, 0.0))
            else:  # one row's overflow must not reach the others through tensors that they share
                w = torch.where(w.isfinite().all(-1, keepdim=True), w, 0)
        facts = partial(_facts, found, status, b)
        if sweep is None or sweep.w is None:  # what there is of larger systems is not kept
            facts = partial(SolveStats, *facts())
        if self.record is not None and not tracing():
            memory = self.settings.memory
            linear = "" if memory is None else memory.description
            lost = None if finished(usable) else ~usable
            self.record.backward = partial(_info, facts, self.batch_shape, linear, lost)
        if status is not None and found.expected:
            w = self._reported(w, found, status, self.settings.limit(b))
        return w, facts

    def _reported(self, w: Tensor, found: Found, status: Tensor, limit: Tensor) -> Tensor:
        """w, once the user has been told of systems that failed."""
        how, (_, residual, steps, *_) = self.settings.on_failure, found.result
        if tracing():
            return reported(w, status, residual, limit, steps, Derivative.name, how, "residual")
        report(Derivative.name, status, residual, limit, steps, how, what_of="residual", inaccurate=found.inaccurate)
        return w


def _facts(found: Found, status: Tensor | None, b: Tensor) -> SolveStats:
    x, residual, steps, *_ = found.result
    status = torch.zeros_like(steps) if status is None else status
    return SolveStats.counted(status, steps, residual, error_of(x, b, residual), found.evaluations, found.products)


def _info(facts: Callable[[], SolveStats], batch_shape: torch.Size, linear: str, lost: Tensor | None) -> SolveInfo:
    return facts().info(batch_shape, Record(Derivative.name, linear=linear, lost=lost))
