"""Where the systems of a batch stand while a solver goes on: their best iterates, and which of them have ended, and how."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from torchimplicit.solvers.endings import rounded
from torchimplicit.solvers.equations import Equations
from torchimplicit.solvers.gathering import take
from torchimplicit.stopping import Status, rms, rounding
from torchimplicit.transforms import count, finished, inside_functorch, occurs

PROGRESS = 0.999  # a residual below so many times the last one that counted is progress

Verdict = Tensor | None  # how systems end; None: all that end have converged


@dataclass(frozen=True)
class Stopping:
    """When the loop stops.

    bound : (z, norm of the residual at the start, unit of norms) -> (B,), the residual that counts as converged.
    moving : whether that depends on z.
    max_steps : at most so many steps.
    floor : a residual below it that has stopped to fall counts as converged too, where it is rounding error
        (:func:`torchimplicit.solvers.endings.rounded`).
    exactly : take this many steps whatever happens (the explicit way).
    at_least_one : also from a start that is a root (the explicit way has no gradient without a step).
    forgiving : a step in which the function raises is the last one, not an error: those that still run have failed.
    """

    bound: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    max_steps: int
    floor: float = 0.0
    exactly: int | None = None
    at_least_one: bool = False
    forgiving: bool = False
    moving: bool = True


@dataclass
class Course:
    """The systems of a batch, (B,) or (B, n) each.

    z, r, norm : the iterate, the residual there and its norm. Of systems that have ended they may go on, unheeded.
    start, bound : the norm at the start, in units of ``unit``, and the one that counts as converged.
    best_z, best : the best iterate and its norm.
    mark, stuck : the last norm that counted as progress, and for how many steps there has been none since.
    lowest : the lowest value of the objective, of a method that goes downhill.
    unitless : whether what is called a norm is relative already: how far the terms of a fit's gradient cancel.
    allowed : how many steps each may take, where that differs.
    running, left : those that have not ended, and their number.
    status, steps : of those that have; CONVERGED is not written down, and ``noted`` says whether anything else was.
    """

    stopping: Stopping
    patience: int
    unitless: bool
    z: Tensor
    r: Tensor
    norm: Tensor
    unit: Tensor | None
    start: Tensor
    bound: Tensor
    best_z: Tensor
    best: Tensor
    mark: Tensor
    stuck: Tensor | int
    lowest: Tensor | None
    allowed: Tensor | None
    running: Tensor
    left: int
    status: Tensor
    steps: Tensor
    noted: bool

    @staticmethod
    def at(
        stopping: Stopping,
        patience: int,
        unitless: bool,
        z: Tensor,
        r: Tensor,
        norm: Tensor,
        unit: Tensor | None,
        start: Tensor,
        lowest: Tensor | None,
        allowed: Tensor | None,
    ) -> Course:
        """At the start, where some may have ended already."""
        bound = stopping.bound(z, start, unit)
        running = torch.ones_like(norm, dtype=torch.bool) if stopping.at_least_one else ~(norm <= bound)
        steps = torch.zeros_like(norm, dtype=torch.int64)
        status, noted = steps, False
        if not all_finite(norm):
            finite = norm.isfinite()
            running, status, noted = running & finite, torch.where(finite, status, Status.NONFINITE), True
        if allowed is not None:
            running, status = running & (allowed > 0), torch.where(allowed > 0, status, Status.CONVERGED)
        return Course(
            *(stopping, patience, unitless, z, r, norm, unit, start, bound, z, norm, norm, 0, lowest, allowed),
            *(running, count(running), status, steps, noted),
        )

    def follow(
        self, z: Tensor, r: Tensor, equations: Equations, merit: Callable[[], Tensor] | None
    ) -> tuple[Tensor, Verdict]:
        """Go on to z with its residual r; which systems end there, and how."""
        norm = rms(r.detach(), self.unit)
        none_ended = self.left == len(self.running)
        closer = norm < PROGRESS * self.mark
        if finished(closer if none_ended else closer | ~self.running) and all_finite(z.detach()):
            return self._all_closer(z, r, norm, none_ended), None
        return self._judged(z, r, norm, equations, merit)

    def _all_closer(self, z: Tensor, r: Tensor, norm: Tensor, none_ended: bool) -> Tensor:
        """The common case: every system that runs has come closer. Those that have ended go on unmasked."""
        self.z, self.r, self.norm = z, r, norm
        if self.stopping.moving:
            self.bound = self.stopping.bound(z, self.start, self.unit)
        if none_ended:
            self.best_z, self.best = z, norm
        else:
            self.best_z = where(self.running, z, self.best_z)
            self.best = torch.where(self.running, norm, self.best)
        self.mark, self.stuck = self.best, 0
        return norm <= self.bound if none_ended else self.running & (norm <= self.bound)

    def _judged(
        self, z: Tensor, r: Tensor, norm: Tensor, equations: Equations, merit: Callable[[], Tensor] | None
    ) -> tuple[Tensor, Verdict]:
        """The general case: each system moves, is stuck, or has come to where nothing is finite."""
        running, stopping = self.running, self.stopping
        valid = (norm + z.detach().sum(-1)).isfinite()
        moves = running & valid
        if not finished(moves):
            z, r, norm = where(moves, z, self.z), where(moves, r, self.r), torch.where(moves, norm, self.norm)
        self.z, self.r, self.norm = z, r, norm
        self.bound = torch.where(moves, stopping.bound(z, self.start, self.unit), self.bound)
        done = moves & (norm <= self.bound)
        closer, progress = norm < self.best, norm < PROGRESS * self.mark
        if merit is not None and self.lowest is not None:
            level = merit()
            lower = level < self.lowest - rounding(self.lowest)
            closer, progress, self.lowest = closer | lower, progress | lower, torch.where(lower, level, self.lowest)
        better = done | (moves & closer)
        self.best_z, self.best = where(better, z, self.best_z), torch.where(better, norm, self.best)
        settled = moves & ~progress & (norm <= stopping.floor)
        if not self.unitless and not inside_functorch() and occurs(settled):  # inside, it would be asked in every step
            settled = settled & rounded(equations, z.detach(), r.detach())
        done = done | settled
        self.mark = torch.where(progress, norm, self.mark)
        self.stuck = torch.where(progress, 0, self.stuck + 1)
        grown = norm > self.start / torch.finfo(norm.dtype).eps
        ends = done | (running & ((self.stuck >= self.patience) | grown | ~valid))
        verdict = torch.where(grown, Status.DIVERGED, Status.STAGNATED)
        return ends, torch.where(done, Status.CONVERGED, torch.where(valid, verdict, Status.NONFINITE))

    def heed(self, said: Tensor, ends: Tensor, verdict: Verdict) -> tuple[Tensor, Verdict]:
        """Those that end, with those of which the method itself says so."""
        ended = self.running & ~ends & (said != Status.RUNNING)
        if verdict is None and not occurs(ended):
            return ends, None
        return ends | ended, torch.where(ended, said, Status.CONVERGED if verdict is None else verdict)

    def out_of_steps(self, taken: int, ends: Tensor, verdict: Verdict) -> tuple[Tensor, Verdict]:
        """Those that end, with those that may take no more steps."""
        if self.allowed is None:
            return ends, verdict
        verdict = torch.where(ends, Status.CONVERGED if verdict is None else verdict, Status.MAX_STEPS)
        return ends | (self.running & (taken >= self.allowed)), verdict

    def end(self, ends: Tensor, verdict: Verdict, taken: int) -> None:
        """Some systems end here, after so many steps; each ends once."""
        if verdict is not None:
            self.status, self.noted = torch.where(ends, verdict, self.status), True
        self.steps = torch.add(self.steps, ends, alpha=taken)
        self.running = self.running & ~ends
        self.left = count(self.running)

    def end_all(self, status: Status, taken: int) -> None:
        """All that are left end here, after so many steps."""
        if self.left:
            self.end(self.running, torch.where(self.running, status, self.status), taken)

    @property
    def results(self) -> tuple[Tensor, ...]:
        """What is found, known of every system: the best z, its norm, status, steps and bound."""
        return self.best_z, self.best, self.status, self.steps, self.bound

    def of_rows(self, rows: Tensor) -> Course:
        """That of some systems. Their residuals are for the solver to give."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        del tensors["r"]
        return replace(self, **take(rows, tensors))


def all_finite(v: Tensor) -> bool:
    """Whether every number is finite, as far as their sum tells; inside a functorch transform never."""
    return not inside_functorch() and math.isfinite(v.sum())


def where(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """The new rows (B, n) of some systems, and the old ones of the others."""
    return torch.where(rows.unsqueeze(-1), new, old)
