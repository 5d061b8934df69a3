"""Where the systems of a batch stand while a solver goes on: their best iterates, and which of them have ended, and how."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from torchimplicit.solvers.equations import Estimate
from torchimplicit.solvers.gathering import take
from torchimplicit.status import Status
from torchimplicit.stopping import measured, rms, rounding
from torchimplicit.tolerance import Tolerance
from torchimplicit.transforms import count, finished, occurs, values_hidden

PROGRESS = 0.999  # a residual below so many times the last one that counted is progress
SLOW = 0.9  # contraction from which a correction near the rounding of z may show nothing but that
LEAP = 100  # times as large as before: a z of which nothing is known yet
HIDDEN = 64  # that is one below so many eps, in parts of z

Verdict = Tensor | None  # how systems end; None: all that end have converged
Gain = Callable[[Tensor, Tensor], Tensor]  # (z, correction) -> how much larger than the correction the error is


@dataclass(frozen=True)
class Stopping:
    """When the loop stops.

    tolerance : of the error of z.
    max_steps : at most so many steps.
    strictness : how many times smaller than the tolerance the estimate of a method has to be that was seen to be so much too small.
    exactly : take this many steps whatever happens (the explicit way).
    at_least_one : also from a start that is a root (the explicit way has no gradient without a step).
    forgiving : a step in which the function raises is the last one, not an error: those that still run have failed.
    """

    tolerance: Tolerance
    max_steps: int
    strictness: float = 1.0
    exactly: int | None = None
    at_least_one: bool = False
    forgiving: bool = False


@dataclass
class Course:
    """The systems of a batch, (B,) or (B, n) each.

    z, r, norm : the iterate, the residual there and its norm. Of systems that have ended they may go on, unheeded.
    start : the norm at the start.
    best_z, best : the best iterate and its norm.
    size, unit : of the correction at z, in tolerances, infinite as long as none is known; and the tolerance there.
    before : its size before the last step that moved z.
    contraction, complete : what the method says of how sizes fall.
    error, bound : the estimated error of systems that have ended, and the one that counts as converged.
    mark, stuck : the last norm that counted as progress, and for how many steps there has been none since.
    lowest : the lowest value of the objective, of a method that goes downhill.
    allowed : how many steps each may take, where that differs.
    running, left : those that have not ended, and their number.
    status, steps : of those that have; CONVERGED is not written down, and ``noted`` says whether anything else was.
    """

    stopping: Stopping
    patience: int
    z: Tensor
    r: Tensor
    norm: Tensor
    start: Tensor
    best_z: Tensor
    best: Tensor
    size: Tensor
    unit: Tensor
    before: Tensor
    contraction: Tensor | float | None
    complete: bool
    error: Tensor
    bound: Tensor
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
        z: Tensor,
        r: Tensor,
        estimate: Estimate | None,
        lowest: Tensor | None,
        allowed: Tensor | None,
        may_grow: bool,
    ) -> Course:
        """At the start, where some may have ended already: where the residual is 0, or the method knows its error."""
        norm = measured(r.detach())
        infinite, unknown = torch.full_like(norm, torch.inf), torch.full_like(norm, torch.nan)
        course = Course(
            stopping=stopping,
            patience=patience,
            z=z,
            r=r,
            norm=norm,
            start=infinite if may_grow else norm,
            best_z=z,
            best=norm,
            size=infinite,
            unit=unknown,
            before=infinite,
            contraction=None,
            complete=False,
            error=unknown,
            bound=unknown,
            mark=norm,
            stuck=0,
            lowest=lowest,
            allowed=allowed,
            running=torch.ones_like(norm, dtype=torch.bool),
            left=-1 if values_hidden() else norm.shape[0],
            status=torch.zeros_like(norm, dtype=torch.int64),
            steps=torch.zeros_like(norm, dtype=torch.int64),
            noted=False,
        )
        done = course.arrived(estimate, z, norm)
        if not finished(norm != 0):
            exact = (r.detach() == 0).all(-1)
            done = exact if done is None else done | exact
            course.error = torch.where(exact, 0, course.error)
        if done is not None and not stopping.at_least_one:
            course.running = ~done
        if not all_finite(norm):
            finite = norm.isfinite()
            course.status, course.noted = torch.where(finite, course.status, Status.NONFINITE), True
            course.running = course.running & finite
        if allowed is not None:
            course.running = course.running & (allowed > 0)
            course.status = torch.where(allowed > 0, course.status, Status.CONVERGED)
        course.left = count(course.running)
        return course

    @property
    def _none_ended(self) -> bool:
        return self.left >= 0 and self.left == len(self.running)

    def follow(
        self, z: Tensor, r: Tensor, estimate: Estimate | None, merit: Callable[[], Tensor] | None, gain: Gain
    ) -> tuple[Tensor | None, Verdict]:
        """Go on to z with its residual r, where the error is estimated; which systems end there (None: none of them), and how."""
        norm = rms(r.detach())
        none_ended = self._none_ended
        closer = norm < PROGRESS * self.mark
        if finished(closer if none_ended else closer | ~self.running) and all_finite(z.detach()):
            return self._all_closer(z, r, norm, estimate, none_ended, gain), None
        return self._judged(z, r, estimate, merit, gain)

    def _all_closer(
        self, z: Tensor, r: Tensor, norm: Tensor, estimate: Estimate | None, none_ended: bool, gain: Gain
    ) -> Tensor | None:
        """The common case: every system that runs has come closer. Those that have ended go on unmasked."""
        self.z, self.r, self.norm = z, r, norm
        if none_ended:
            self.best_z, self.best = z, norm
        else:
            self.best_z = where(self.running, z, self.best_z)
            self.best = torch.where(self.running, norm, self.best)
        self.mark, self.stuck = self.best, 0
        return self.arrived(estimate, z, norm, gain, all_moved=True)

    def _judged(
        self, z: Tensor, r: Tensor, estimate: Estimate | None, merit: Callable[[], Tensor] | None, gain: Gain
    ) -> tuple[Tensor, Verdict]:
        """The general case: each system moves, is stuck, or has come to where nothing is finite."""
        norm = measured(r.detach())
        valid = (norm + z.detach().sum(-1)).isfinite()
        moves = self.running & valid
        if not finished(moves):
            z, r, norm = where(moves, z, self.z), where(moves, r, self.r), torch.where(moves, norm, self.norm)
        self.z, self.r, self.norm = z, r, norm
        arrived = self.arrived(estimate, z, norm, gain)
        done = torch.zeros_like(moves) if arrived is None else moves & arrived
        closer = norm < self.best
        progress = norm < PROGRESS * self.mark
        if merit is not None and self.lowest is not None:
            level = merit()
            lower = level < self.lowest - rounding(self.lowest)
            closer, progress, self.lowest = closer | lower, progress | lower, torch.where(lower, level, self.lowest)
        better = done | (moves & closer)
        self.best_z, self.best = where(better, z, self.best_z), torch.where(better, norm, self.best)
        self.mark = torch.where(progress, norm, self.mark)
        self.stuck = torch.where(progress, 0, self.stuck + 1)
        stuck = self.running & (self.stuck >= self.patience)
        grown = norm > self.start / torch.finfo(norm.dtype).eps
        ends = done | (self.running & (stuck | grown | ~valid))
        if occurs(ends & ~done):
            done = done | self._at_the_floor(estimate, stuck & valid & ~done, gain)
        verdict = torch.where(grown, Status.DIVERGED, Status.STAGNATED)
        return ends, torch.where(done, Status.CONVERGED, torch.where(valid, verdict, Status.NONFINITE))

    def arrived(
        self, estimate: Estimate | None, z: Tensor, norm: Tensor, gain: Gain | None = None, all_moved: bool = False
    ) -> Tensor | None:
        """The running systems (B,) whose error at z, as it is estimated there, is no larger than the tolerance; None: none of them."""
        if estimate is None:
            return None
        tolerance, z = self.stopping.tolerance, z.detach()
        correction, self.contraction, scale, self.complete = estimate
        mean, bound = tolerance.mean(correction, z, norm if correction is self.r else None)
        size = mean / bound if isinstance(scale, float) and scale == 1 else scale * mean / bound
        unit_before = self.unit
        # A step that was refused shows nothing.
        self.before = self.size if all_moved else torch.where(size != self.size, self.size, self.before)
        self.size, self.unit = size, bound
        near = ~(size > 1 / self.stopping.strictness)
        if not self._none_ended:
            near = near & self.running
        if not values_hidden() and not occurs(near):
            return None
        extreme = not finished((mean > 0) & (bound < torch.inf))  # squares may have vanished or overflowed
        if extreme:
            mean, self.unit = tolerance.mean(correction, z, norm=measured)
            self.size = scale * mean / self.unit
        largest, bound = (mean, self.unit) if z.shape[-1] == 1 else tolerance.largest(correction, z)
        error = largest = largest if isinstance(scale, float) and scale == 1 else scale * largest
        if not self.complete:
            theta = self._theta()
            error = largest / (1 - theta).clamp(min=0)
            slow = near & ~(theta < SLOW)
            if gain is not None and not values_hidden() and occurs(slow):
                slow = slow & (largest <= HIDDEN * torch.finfo(z.dtype).eps * rms(z))
                error = torch.where(slow, largest * gain(z, correction), error) if occurs(slow) else error
        elif isinstance(self.contraction, Tensor):
            error = largest / (1 - self.contraction).clamp(min=0)
        # Nothing is known after a leap; and a correction as long as z, small for atol alone, has to be seen to become smaller.
        if not finished((bound <= LEAP * unit_before) & (bound > 2 * tolerance.atol)):
            leapt = (bound > LEAP * unit_before) & (unit_before > 2 * tolerance.atol)
            alone = (largest > measured(z) / 2) & ~((self.size < self.before) & (self.before < torch.inf))
            error = torch.where(leapt | alone, torch.inf, error)
        if extreme:
            error = torch.where((self.r.detach() == 0).all(-1), 0, error)
        self.error, self.bound = torch.where(near, error, self.error), torch.where(near, bound, self.bound)
        return near & (error < torch.inf) & (error * self.stopping.strictness <= bound)

    def _theta(self) -> Tensor:
        """By what factor the correction becomes smaller: NaN where nothing is known of it."""
        prior = torch.nan if self.contraction is None else self.contraction
        if self.complete:
            return torch.as_tensor(prior, dtype=self.size.dtype, device=self.size.device)
        return torch.where(self.before < torch.inf, self.size / self.before, prior)

    def _at_the_floor(self, estimate: Estimate | None, stuck: Tensor, gain: Gain) -> Tensor:
        """Those of the systems that come no nearer whose error is nothing but rounding."""
        if estimate is None or not occurs(stuck):
            return torch.zeros_like(stuck)
        z = self.z.detach()
        largest, bound = self.stopping.tolerance.floor(z.dtype).largest(estimate.correction, z)
        largest = estimate.scale * largest
        near = stuck & (largest <= bound)
        if not occurs(near):
            return near
        if self.complete or values_hidden():
            error = largest
        else:
            error = largest * gain(z, estimate.correction)
        self.error = torch.where(near, error, self.error)
        return near & (error <= bound)

    def heed(self, said: Tensor, ends: Tensor | None, verdict: Verdict) -> tuple[Tensor | None, Verdict]:
        """Those that end, with those of which the method itself says so."""
        ended = self.running & (said != Status.RUNNING)
        if ends is None:
            return ended, torch.where(ended, said, Status.CONVERGED)
        ended = ended & ~ends
        if verdict is None and not occurs(ended):
            return ends, None
        return ends | ended, torch.where(ended, said, Status.CONVERGED if verdict is None else verdict)

    def out_of_steps(self, taken: int | Tensor, ends: Tensor | None, verdict: Verdict) -> tuple[Tensor | None, Verdict]:
        """Those that end, with those that may take no more steps."""
        if self.allowed is None:
            return ends, verdict
        ends = torch.zeros_like(self.running) if ends is None else ends
        verdict = torch.where(ends, Status.CONVERGED if verdict is None else verdict, Status.MAX_STEPS)
        return ends | (self.running & (taken >= self.allowed)), verdict

    def end(self, ends: Tensor, verdict: Verdict, taken: int | Tensor) -> None:
        """Some systems end here, after so many steps; each ends once."""
        if verdict is not None:
            self.status, self.noted = torch.where(ends, verdict, self.status), True
            failed = ends & (verdict != Status.CONVERGED)
            error = self.size * self.unit / (1 - self._theta()).clamp(min=0)
            self.error, self.bound = torch.where(failed, error, self.error), torch.where(failed, self.unit, self.bound)
        self.steps = torch.where(ends, taken, self.steps)
        self.running = self.running & ~ends
        self.left = count(self.running)

    def end_all(self, status: Status, taken: int) -> None:
        """All that are left end here, after so many steps."""
        if self.left:
            self.end(self.running, torch.where(self.running, status, self.status), taken)

    @property
    def results(self) -> tuple[Tensor, ...]:
        """What is found, known of every system: the best z, its norm, status, steps, estimated error and tolerance."""
        return self.best_z, self.best, self.status, self.steps, self.error, self.bound

    def of_rows(self, rows: Tensor) -> Course:
        """That of some systems. Their residuals are for the solver to give."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        del tensors["r"]
        return replace(self, **take(rows, tensors))


def all_finite(v: Tensor) -> bool:
    """Whether every number is finite, as far as their sum tells; inside a functorch transform never."""
    return not values_hidden() and math.isfinite(v.sum())


def where(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """The new rows (B, n) of some systems, and the old ones of the others."""
    return torch.where(rows.unsqueeze(-1), new, old)
