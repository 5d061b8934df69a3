"""What a solve returns: ``Solution(value, info)``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchimplicit.private import functorch, pytree
from torchimplicit.status import Status


@dataclass(eq=False)
class Record:
    """Plain detached facts beside the tensors: filled in by the forward (trace) and the backward (adjoint)."""

    def __eq__(self, other: object) -> bool:
        """Any two are equal: as pytree context a record is no part of the structure, so infos of two solves match."""
        return isinstance(other, Record)

    def __hash__(self) -> int:
        return hash(Record)

    sought: str = "root"  # the name of the kind of problem
    trace: Tensor | None = None
    tried: tuple[str, ...] = ()
    solved_by: Tensor | None = None
    linear: str = ""
    lost: Tensor | None = None  # of a derivative: the systems whose z the forward solve had not found, flat
    backward: Callable[[], SolveInfo] | None = None  # told when somebody asks

    @property
    def adjoint(self) -> SolveInfo | None:
        """The facts of the latest first-order backward solve."""
        return None if self.backward is None else self.backward()


@dataclass(repr=False)
class SolveInfo:
    """The facts of a solve. Tensors have one entry per batch element (shape: z's batch dimensions; ``()`` without any).

    ``print(info)`` is one line, however many systems there are; ``print(info.summary())`` says more.

    converged : bool. The error is within the tolerance, or nothing but rounding keeps it from that.
    status : int, a :class:`torchimplicit.Status`; ``status_names`` has the names.
    steps : int. Steps taken by each system.
    residual : rms(g(z)) of each system, at the last z that was evaluated: a minimum up to n = 64 may have been moved by a
        correction since, within its tolerance.
    error : the estimated error of z, in z's own units: of the numbers of a system the largest (of a pytree those of the leaf
        whose error is largest beside its tolerance). It is what decides about convergence.
    evaluations : of g by the search, each over the whole batch (a 0-d tensor). Where the search goes block by block, their sum
        in proportion to the blocks. What is evaluated besides is not counted: g as it is recorded for the derivative, for
        ``aux``, and in the steps of ``OneStep`` and ``Phantom``.
    products : Jacobian products of the search, each a vjp or a jvp over the whole batch (a 0-d tensor).
    aux : auxiliary output of g at the returned z, detached (``has_aux=True``).
    """

    converged: Tensor
    status: Tensor
    steps: Tensor
    residual: Tensor
    error: Tensor
    evaluations: Tensor
    products: Tensor
    aux: Any = None
    record: Record = field(default_factory=Record, repr=False, compare=False)

    @property
    def trace(self) -> Tensor | None:
        """Residual before the first and after every step, (steps + 1, *batch), detached (``trace=True``)."""
        return self.record.trace

    @property
    def tried(self) -> tuple[str, ...]:
        """The methods that ran one after the other, where no single one was named."""
        return self.record.tried

    @property
    def solved_by(self) -> Tensor | None:
        """Which of them (its place in ``tried``) has solved each system; -1 where none has."""
        return self.record.solved_by

    @property
    def linear(self) -> str:
        """How the linear systems were solved, of large Jacobians, in words: the method, its preconditioner, the pattern, or why there
        is none. Empty where nothing had to be chosen."""
        return self.record.linear

    @property
    def adjoint(self) -> SolveInfo | None:
        """The same facts of the latest first-order backward solve, filled in when it runs."""
        return self.record.adjoint

    @property
    def message(self) -> str:
        """What happened, in prose, one line for every status that occurs; and, of a backward, one for those whose z is no solution."""
        lines = [f"{name}: {Status[name.upper()].prose_for(self.record.sought)}" for name in self._how_many()]
        if lost := self._lost:
            lines.append(
                f"{lost} of {self.status.numel()} at a z that the forward solve has not found: what is said of these is said of the "
                "linear system there, whose solution is the derivative of no solution. Take them out of the loss."
            )
        return "\n".join(lines)

    @property
    def _lost(self) -> int:
        """Of a derivative, how many systems there are whose z the forward solve had not found."""
        return 0 if self.record.lost is None else int(self.record.lost.sum())

    @property
    def status_names(self) -> Any:
        """The names of the statuses, as they are in ``status.tolist()``: "converged", or a list of such."""

        def named(codes: Any) -> Any:
            return [named(code) for code in codes] if isinstance(codes, list) else Status(codes).name.lower()

        return named(self.status.tolist())

    def summary(self) -> str:
        """In a few lines: how many systems ended how, the largest error, the steps, the costs, what is said of failures, and the
        backward, if it has run."""
        lines = [repr(self)]
        if self.solved_by is not None:
            solved = [f"{name} ({int(self.solved_by.eq(i).sum())} solved)" for i, name in enumerate(self.tried)]
            lines.append(f"tried: {', '.join(solved)}")
        if self.linear:
            lines.append(f"linear systems: {self.linear}")
        lines += [line for line in self.message.splitlines() if not line.startswith("converged:")]
        if self.adjoint is not None:
            lines.append(f"backward: {self.adjoint.summary()}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        """One line, however many systems there are."""
        if functorch.wrapped(self.status):
            return f"SolveInfo(inside a transform, status of shape {tuple(self.status.shape)})"
        if not self.status.numel():
            return "SolveInfo(no systems)"
        batch = self.status.ndim > 0
        ended = ", ".join(f"{n} {name}" if batch else name for name, n in self._how_many().items())
        sizes = [f"{name} {_largest(getattr(self, name))}" for name in ("error", "residual")]
        steps = self.steps.flatten().sort().values
        if not batch:
            taken = "1 step" if steps == 1 else f"{int(steps)} steps"
        elif steps[0] == steps[-1]:
            taken = f"{int(steps[0])} {'step' if steps[0] == 1 else 'steps'} each"
        else:
            taken = f"steps {int(steps[0])} to {int(steps[-1])}, median {int(steps[(len(steps) - 1) // 2])}"
        costs = [f"{int(getattr(self, name).max())} {name}" for name in ("evaluations", "products")]
        largest = ("largest " if batch else "") + ", ".join(sizes)
        systems = f"{self.status.numel()} systems: " if batch else ""
        if lost := self._lost:
            ended += f", {lost} of them at a z that was not found" if batch else " at a z that was not found"
        return f"SolveInfo({systems}{ended}; {taken}; {largest}; {', '.join(costs)})"

    def _how_many(self) -> dict[str, int]:
        """How many systems have each status that occurs, by its name."""
        codes, counts = self.status.detach().flatten().unique(return_counts=True)
        return {Status(code).name.lower(): n for code, n in zip(codes.tolist(), counts.tolist(), strict=True)}


class Solution(NamedTuple):
    """``value, info = ti.root(...)``: the solution z* (like z0) and the facts of the solve."""

    value: Any
    info: SolveInfo


def _largest(sizes: Tensor) -> str:
    """The largest of those numbers that are known."""
    known = sizes.detach()[~sizes.detach().isnan()]
    return f"{float(known.max()):.2g}" if known.numel() else "unknown"


_TENSORS = ("converged", "status", "steps", "residual", "error", "evaluations", "products")


def _flatten(info: SolveInfo) -> tuple[list[Any], tuple[bool, Record]]:
    has_aux = info.aux is not None
    children = [getattr(info, name) for name in _TENSORS]
    return ([*children, info.aux] if has_aux else children), (has_aux, info.record)


def _unflatten(children: Iterable[Any], context: tuple[bool, Record]) -> SolveInfo:
    has_aux, record = context
    names = (*_TENSORS, "aux") if has_aux else _TENSORS
    return SolveInfo(**dict(zip(names, children, strict=True)), record=record)


pytree.register_pytree_node(SolveInfo, _flatten, _unflatten, serialized_type_name="torchimplicit.SolveInfo")


class SolveStats(NamedTuple):
    """What a solve tells of itself as flat tensors, which travel through transforms: (B,) each, the last two 0-d."""

    status: Tensor
    steps: Tensor
    residual: Tensor
    error: Tensor
    evaluations: Tensor
    products: Tensor

    @staticmethod
    def counted(
        status: Tensor,
        steps: Tensor,
        residual: Tensor,
        error: Tensor,
        evaluations: int | Tensor,
        products: int | Tensor,
    ) -> SolveStats:
        """With the counts as tensors."""
        counts = (n if isinstance(n, Tensor) else status.new_full((), n) for n in (evaluations, products))
        return SolveStats(status, steps, residual, error, *counts)

    @staticmethod
    def of(info: SolveInfo) -> SolveStats:
        """Those of a solution, flat again."""
        status, steps, residual, error = (
            part.reshape(-1) for part in (info.status, info.steps, info.residual, info.error)
        )
        return SolveStats(status, steps, residual, error, info.evaluations, info.products)

    def info(self, batch_shape: torch.Size, record: Record, aux: Any = None) -> SolveInfo:
        """As the user sees it: in z's batch dimensions (with those of vmap in front, where they are part of the batch)."""

        def shaped(t: Tensor) -> Tensor:
            return t.reshape(batch_shape) if t.shape[0] == math.prod(batch_shape) else t.reshape(-1, *batch_shape)

        status = shaped(self.status)
        converged = status == int(Status.CONVERGED)  # torch takes three times as long for the enum itself
        steps, residual, error = shaped(self.steps), shaped(self.residual), shaped(self.error)
        return SolveInfo(converged, status, steps, residual, error, self.evaluations, self.products, aux, record)
