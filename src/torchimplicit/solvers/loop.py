"""The one loop around every solver: per-system convergence, best iterate, status, trace, callback, counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchimplicit.randomness import random_state
from torchimplicit.solvers.endings import local_minimum, rounded, second_order, singular, stochastic
from torchimplicit.solvers.equations import Equations, Solver
from torchimplicit.solvers.gathering import Gathering, take
from torchimplicit.stopping import Status, all_converged, measured, rms, rounding
from torchimplicit.transforms import count, finished, inside_functorch, occurs

PROGRESS = 0.999  # a residual below so many times the last one that counted is progress


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


@dataclass(frozen=True)
class Found:
    """Where the loop ended; per system: status, steps, residual and the bound it was held against.

    inverse : the tensors of the approximate inverse of ∂g/∂z that the solver leaves behind; of one that has none, those of the
        second look at a minimum; or none.
    tried : the methods that ran, where there were several.
    solved_by : which of them has solved each system; -1 where none.
    """

    z: Tensor
    status: Tensor
    steps: Tensor
    residual: Tensor
    bound: Tensor
    inverse: tuple[Tensor, ...] = ()
    trace: Tensor | None = None
    tried: tuple[str, ...] = ()
    solved_by: Tensor | None = None


Watch = Callable[[int, Tensor, Tensor], None]
Advance = Callable[[Tensor, Tensor, Any], tuple[Tensor, Tensor, Any]]


def solve(
    solver: Solver,
    equations: Equations,
    z: Tensor,
    stopping: Stopping,
    *,
    watch: Watch | None = None,
    keep_trace: bool = False,
    advance: Advance | None = None,
    allowed: Tensor | None = None,
) -> Found:
    """Run ``solver`` from z, (B, n), until every system has a status.

    What is returned for a system is the best z that it has seen until it finished, whatever becomes of it while others go on.
    Inside a transform, where no value may decide what runs, ``max_steps`` masked steps run.
    ``advance`` replaces ``solver.step`` (to checkpoint it, say). ``allowed`` limits the steps of each system, (B,); one that is
    allowed none is left alone, and counts as converged.
    """
    if hasattr(solver, "starting_point"):
        z = solver.starting_point(z)
    z0 = z
    gathering = Gathering(solver, equations, z)
    step: Advance = advance or (lambda z, r, state: solver.step(gathering.equations, z, r, state))
    noise = random_state(z.device)
    r, state = solver.init(equations, z)
    norm, unit = measured(r.detach())
    scale: Callable[[Equations, Tensor], Tensor] | None = getattr(solver, "scale", None)
    start = norm if scale is None else scale(equations, norm)
    angles = scale is not None and equations.kind.sums_squares  # a norm that has no unit
    trace = [norm] if keep_trace else []
    if watch is not None:
        watch(0, z, norm)
    if stopping.exactly is not None:
        for k in range(stopping.exactly):
            z, r, state = step(z, r, state)
            norm = rms(r.detach(), unit)
            if keep_trace:
                trace.append(norm)
            if watch is not None:
                watch(k + 1, z, norm)
        bound = stopping.bound(z, start, unit)
        status = torch.where(norm.isfinite(), Status.MAX_STEPS, Status.NONFINITE)
        status = torch.where(norm.isfinite() & (norm <= bound), Status.CONVERGED, status)
        status, _ = second_order(equations, z.detach(), status)
        steps = torch.full_like(status, stopping.exactly)
        return Found(z, status, steps, norm, bound, trace=torch.stack(trace) if trace else None)

    bound = stopping.bound(z, start, unit)
    running = torch.ones_like(norm, dtype=torch.bool) if stopping.at_least_one else ~(norm <= bound)
    steps = torch.zeros_like(norm, dtype=torch.int64)  # of the systems that have ended
    status = steps  # of them: CONVERGED, until something else is noted
    noted = False
    if not _all_finite(norm):
        finite = norm.isfinite()
        running, status, noted = running & finite, torch.where(finite, status, Status.NONFINITE), True
    if allowed is not None:
        running, status = running & (allowed > 0), torch.where(allowed > 0, status, Status.CONVERGED)
    left = count(running)
    taken = 0
    stuck: Tensor | int = 0  # for how many steps a system has made no progress
    verdict: Tensor | None  # None: what ends has converged
    best_z, best, mark = z, norm, norm
    merit: Callable[[Any], Tensor] | None = getattr(solver, "merit", None)
    lowest = None if merit is None else merit(state)
    verdict_of: Callable[[Any], Tensor] | None = getattr(solver, "verdict", None)
    inverse_of: Callable[[Any], tuple[Tensor, ...]] = getattr(solver, "inverse", _no_inverse)
    if advance is not None:  # its states are not the solver's
        inverse_of = _no_inverse
    while taken < stopping.max_steps and left:
        there = equations.attempt(step, z, r, state) if stopping.forgiving else step(z, r, state)
        if there is None:
            status, noted = torch.where(running, Status.NONFINITE, status), True
            break
        z_new, r_new, state = there
        taken += 1
        norm_new = rms(r_new.detach(), unit)
        if keep_trace:
            trace.append(torch.where(running, norm_new, trace[-1]))
        none_ended = left == len(running)
        closer = norm_new < PROGRESS * mark
        if finished(closer if none_ended else closer | ~running) and _all_finite(z_new.detach()):
            # The common case: every system that runs has come closer. Those that have ended go on unmasked, and unheeded.
            z, r, norm = z_new, r_new, norm_new
            bound = stopping.bound(z, start, unit) if stopping.moving else bound
            ends = norm <= bound if none_ended else running & (norm <= bound)
            best_z, best = (z, norm) if none_ended else (_where(running, z, best_z), torch.where(running, norm, best))
            mark, stuck, verdict = best, 0, None
        else:
            valid = (norm_new + z_new.detach().sum(-1)).isfinite()
            moves = running & valid
            if finished(moves):  # two copies of z fewer
                z, r, norm = z_new, r_new, norm_new
            else:
                z, r, norm = _where(moves, z_new, z), _where(moves, r_new, r), torch.where(moves, norm_new, norm)
            bound = torch.where(moves, stopping.bound(z, start, unit), bound)
            done = moves & (norm <= bound)
            closer, progress = norm < best, norm < PROGRESS * mark
            if merit is not None and lowest is not None:
                level = merit(state)
                lower = level < lowest - rounding(lowest)
                closer, progress, lowest = closer | lower, progress | lower, torch.where(lower, level, lowest)
            better = done | (moves & closer)
            best_z, best = _where(better, z, best_z), torch.where(better, norm, best)
            settled = moves & ~progress & (norm <= stopping.floor)
            if not angles and not inside_functorch() and occurs(settled):  # inside, it would be asked in every step
                settled = settled & rounded(gathering.equations, z.detach(), r.detach())
            done = done | settled
            mark, stuck = torch.where(progress, norm, mark), torch.where(progress, 0, stuck + 1)
            grown = norm > start / torch.finfo(norm.dtype).eps
            ends = done | (running & ((stuck >= solver.patience) | grown | ~valid))
            verdict = torch.where(grown, Status.DIVERGED, Status.STAGNATED)
            verdict = torch.where(done, Status.CONVERGED, torch.where(valid, verdict, Status.NONFINITE))
        if verdict_of is not None:
            said = verdict_of(state)
            ended = running & ~ends & (said != Status.RUNNING)
            if verdict is not None or occurs(ended):
                verdict = torch.where(ended, said, Status.CONVERGED if verdict is None else verdict)
                ends = ends | ended
        if allowed is not None:
            verdict = torch.where(ends, Status.CONVERGED if verdict is None else verdict, Status.MAX_STEPS)
            ends = ends | (running & (taken >= allowed))
        if watch is not None:
            watch(taken, _where(running, z, best_z), torch.where(running, norm, best))
        if count(ends):
            if verdict is not None:
                status, noted = torch.where(ends, verdict, status), True
            steps = torch.add(steps, ends, alpha=taken)  # each ends once
            running = running & ~ends
            left = count(running)
            if not (keep_trace or watch) and gathering.worthwhile(left, len(running)):
                results = (best_z, best, status, steps, bound, *inverse_of(state))
                rows = gathering.keep(running, results)
                best_z, best, status, steps, bound = (take(rows, t) for t in results[:5])
                here = (z, unit, start, norm, mark, stuck, lowest, allowed)
                z, unit, start, norm, mark, stuck, lowest, allowed = take(rows, here)
                r, state = gathering.restart(rows, z, r, state)
                running = take(rows, running)
    if left:
        steps = torch.add(steps, running, alpha=taken)
        status, noted = torch.where(running & (status == Status.CONVERGED), Status.MAX_STEPS, status), True
    results = (best_z, best, status, steps, bound, *inverse_of(state))
    best_z, best, status, steps, bound, *inverse = gathering.all(results)
    failed = noted and not all_converged(status)
    if failed:
        status = singular(equations, best_z.detach(), best, status)
    if failed and verdict_of is None:  # to one that judges for itself a jump between two signs is no minimum
        status = local_minimum(equations, z0.detach(), best_z.detach(), status)
    if failed or not torch.equal(noise, random_state(z.device)):
        status = stochastic(solver, equations, best_z.detach(), best, status)
    hessian_of: Callable[[Any], Tensor] | None = getattr(solver, "hessian", None)
    known = advance is None and best_z is z and not equations.kind.bounded
    hessian = hessian_of(state) if hessian_of and known else None
    status, of_hessian = second_order(equations, best_z.detach(), status, hessian)
    if inverse_of is _no_inverse:
        inverse = [*of_hessian]
    return Found(best_z, status, steps, best, bound, tuple(inverse), torch.stack(trace) if trace else None)


def _no_inverse(_: Any) -> tuple[Tensor, ...]:
    return ()


def _all_finite(v: Tensor) -> bool:
    """Whether every number is finite, as far as their sum tells; inside a functorch transform never."""
    return not inside_functorch() and math.isfinite(v.sum())


def _where(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(rows.unsqueeze(-1), new, old)
