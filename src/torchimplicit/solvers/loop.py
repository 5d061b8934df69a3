"""The one loop around every solver: per-system convergence, best iterate, status, trace, callback, counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchimplicit.linear import LU
from torchimplicit.randomness import random_state
from torchimplicit.solvers.equations import Equations, Solver
from torchimplicit.solvers.gathering import Gathering
from torchimplicit.stopping import Status, rms, rounding
from torchimplicit.transforms import finished

# The largest n for which a failed solve is asked whether its Jacobian was singular, and a minimum whether it is one.
DIAGNOSE_LIMIT = 64
DIAGNOSE_ENTRIES = 2**26  # largest number of entries of all Hessians of the batch that are looked at

PROGRESS = 0.999  # a residual below so many times the last one that counted is progress


@dataclass(frozen=True)
class Stopping:
    """When the loop stops.

    bound : (z, norm of the residual at the start) -> (B,), the residual that counts as converged.
    max_steps : at most so many steps.
    floor : a residual below it that has stopped to fall counts as converged too: it is rounding error.
    exactly : take this many steps whatever happens (the explicit way).
    at_least_one : also from a start that is a root (the explicit way has no gradient without a step).
    forgiving : a step in which the function raises is the last one, not an error: those that still run have failed.
    """

    bound: Callable[[Tensor, Tensor], Tensor]
    max_steps: int
    floor: float = 0.0
    exactly: int | None = None
    at_least_one: bool = False
    forgiving: bool = False


@dataclass(frozen=True)
class Found:
    """Where the loop ended; per system: status, steps, residual and the bound it was held against.

    tried : the methods that ran, where there were several.
    solved_by : which of them has solved each system; -1 where none.
    """

    z: Tensor
    status: Tensor
    steps: Tensor
    residual: Tensor
    bound: Tensor
    state: Any
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
    z0 = z
    gathering = Gathering(solver, equations, len(z))
    step: Advance = advance or (lambda z, r, state: solver.step(gathering.equations, z, r, state))
    noise = random_state(z.device)
    r, state = solver.init(equations, z)
    norm = rms(r.detach())
    scale: Callable[[Equations, Tensor], Tensor] | None = getattr(solver, "scale", None)
    start = norm if scale is None else scale(equations, norm)
    trace = [norm] if keep_trace else []
    if watch is not None:
        watch(0, z, norm)
    if stopping.exactly is not None:
        for k in range(stopping.exactly):
            z, r, state = step(z, r, state)
            norm = rms(r.detach())
            if keep_trace:
                trace.append(norm)
            if watch is not None:
                watch(k + 1, z, norm)
        bound = stopping.bound(z, start)
        status = _judge(norm, bound, torch.full_like(norm, Status.MAX_STEPS, dtype=torch.int64))
        status = _second_order(equations, z.detach(), status)
        steps = torch.full_like(status, stopping.exactly)
        return Found(z, status, steps, norm, bound, state, torch.stack(trace) if trace else None)

    limit = start / torch.finfo(norm.dtype).eps
    bound = stopping.bound(z, start)
    status = _judge(norm, bound, torch.full_like(norm, Status.RUNNING, dtype=torch.int64))
    if stopping.at_least_one:
        status = torch.where(status == Status.CONVERGED, Status.RUNNING, status)
    if allowed is not None:
        status = torch.where(allowed > 0, status, Status.CONVERGED)
    running = status == Status.RUNNING
    none_ended, none_left = finished(running), finished(~running)
    steps = stuck = torch.zeros_like(status)  # stuck: for how many steps a system has made no progress
    best_z, best, mark = z, norm, norm
    merit: Callable[[Any], Tensor] | None = getattr(solver, "merit", None)
    lowest = None if merit is None else merit(state)
    verdict_of: Callable[[Any], Tensor] | None = getattr(solver, "verdict", None)
    for k in range(1, stopping.max_steps + 1):
        if none_left:
            break
        if stopping.forgiving:
            taken = equations.attempt(step, z, r, state)
            if taken is None:
                status = torch.where(running, Status.NONFINITE, status)
                break
            z_new, r_new, state = taken
        else:
            z_new, r_new, state = step(z, r, state)
        norm_new = rms(r_new.detach())
        steps = steps + running
        if keep_trace:
            trace.append(torch.where(running, norm_new, trace[-1]))
        closer = norm_new < PROGRESS * mark
        if finished(closer if none_ended else closer | ~running) and bool(z_new.detach().sum().isfinite()):
            # The common case: every system that runs has come closer. Those that have ended go on unmasked, and unheeded.
            z, r, norm = z_new, r_new, norm_new
            bound = stopping.bound(z, start)
            ends = norm <= bound if none_ended else running & (norm <= bound)
            best_z, best = (z, norm) if none_ended else (_where(running, z, best_z), torch.where(running, norm, best))
            mark, stuck = best, torch.zeros_like(stuck)
            verdict = torch.full_like(status, Status.CONVERGED)
        else:
            valid = (norm_new + rms(z_new.detach())).isfinite()
            moves = running & valid
            z, r, norm = _where(moves, z_new, z), _where(moves, r_new, r), torch.where(moves, norm_new, norm)
            bound = torch.where(moves, stopping.bound(z, start), bound)
            done = moves & (norm <= bound)
            closer, progress = norm < best, norm < PROGRESS * mark
            if merit is not None and lowest is not None:
                level = merit(state)
                lower = level < lowest - rounding(lowest)
                closer, progress, lowest = closer | lower, progress | lower, torch.where(lower, level, lowest)
            better = done | (moves & closer)
            best_z, best = _where(better, z, best_z), torch.where(better, norm, best)
            done = done | (moves & ~progress & (norm <= stopping.floor))
            mark, stuck = torch.where(progress, norm, mark), torch.where(progress, 0, stuck + 1)
            grown = norm > limit
            ends = done | (running & ((stuck >= solver.patience) | grown | ~valid))
            verdict = torch.where(grown, Status.DIVERGED, Status.STAGNATED)
            verdict = torch.where(done, Status.CONVERGED, torch.where(valid, verdict, Status.NONFINITE))
        if verdict_of is not None:
            said = verdict_of(state)
            ended = running & ~ends & (said != Status.RUNNING)
            ends, verdict = ends | ended, torch.where(ended, said, verdict)
        if allowed is not None:
            verdict = torch.where(ends, verdict, Status.MAX_STEPS)
            ends = ends | (running & (steps >= allowed))
        if watch is not None:
            watch(k, _where(running, z, best_z), torch.where(running, norm, best))
        if not finished(~ends):
            status = torch.where(ends, verdict, status)
            running = running & ~ends
            none_ended, none_left = False, finished(~running)
            if not (keep_trace or watch or none_left) and gathering.worthwhile(running):
                results = (best_z, best, status, steps, bound)
                here = (state, z, r, start, limit, norm, mark, stuck, lowest, allowed)
                here, results = gathering.keep(running, results, (here, results))
                best_z, best, status, steps, bound = results
                state, z, r, start, limit, norm, mark, stuck, lowest, allowed = here
                running, none_ended = running[running], True
    best_z, best, status, steps, bound = gathering.all((best_z, best, status, steps, bound))
    status = torch.where(status == Status.RUNNING, Status.MAX_STEPS, status)
    failed = not finished(status == Status.CONVERGED)
    if failed:
        status = _singular(equations, best_z.detach(), best, status)
        if (
            verdict_of is None
        ):  # a method that judges for itself knows better: a jump between two signs looks like a minimum
            status = _local_minimum(equations, z0.detach(), best_z.detach(), status)
    if failed or not torch.equal(noise, random_state(z.device)):
        status = _stochastic(solver, equations, best_z.detach(), best, status)
    status = _second_order(equations, best_z.detach(), status)
    return Found(best_z, status, steps, best, bound, state, torch.stack(trace) if trace else None)


def _judge(norm: Tensor, bound: Tensor, otherwise: Tensor) -> Tensor:
    status = torch.where(norm.isfinite(), otherwise, Status.NONFINITE)
    return torch.where((norm <= bound) & norm.isfinite(), Status.CONVERGED, status)


def _where(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(rows.unsqueeze(-1), new, old)


def _stochastic(solver: Solver, equations: Equations, z: Tensor, norm: Tensor, status: Tensor) -> Tensor:
    """Of systems that failed, or whose function has drawn random numbers, those that get another answer at the best z."""
    with torch.no_grad():
        again = rms(solver.init(equations, z)[0])
    differs = (again - norm).abs() > torch.finfo(norm.dtype).eps ** 0.5 * (norm + rms(z))
    return torch.where(norm.isfinite() & differs, Status.STOCHASTIC, status)


def _singular(equations: Equations, z: Tensor, norm: Tensor, status: Tensor) -> Tensor:
    """Of systems that ended in NaN or Inf, those whose Jacobian is singular at the best z."""
    with torch.no_grad():
        stuck = (status == Status.NONFINITE) & norm.isfinite()
        if z.shape[-1] <= DIAGNOSE_LIMIT and not finished(~stuck):
            singular = LU().factorize(equations.jacobian(z)).singular
            status = torch.where(stuck & singular, Status.SINGULAR, status)
    return status


def _local_minimum(equations: Equations, z0: Tensor, z: Tensor, status: Tensor) -> Tensor:
    """Of roots that came no nearer, those at whose best z the norm of g has a local minimum.

    There Jᵀg is nothing beside ‖J‖ ‖g‖, with the larger ‖J‖ of those at z and at the start: a single equation has J = 0.
    """
    kind = equations.kind
    stuck = status == Status.STAGNATED
    if kind.minimised or kind.near_identity or z.shape[-1] > DIAGNOSE_LIMIT or finished(~stuck):
        return status
    with torch.no_grad():
        linearised = equations.jacobian(z)
        size = torch.linalg.matrix_norm(linearised.to_dense())
        size = size.maximum(torch.linalg.matrix_norm(equations.jacobian(z0).to_dense()).nan_to_num())
        g = linearised.value / torch.linalg.vector_norm(linearised.value, dim=-1, keepdim=True)
        flat = torch.linalg.vector_norm(linearised.rmatvec(g), dim=-1) <= (1 - PROGRESS) * size
    return torch.where(stuck & flat, Status.LOCAL_MINIMUM, status)


def _second_order(equations: Equations, z: Tensor, status: Tensor) -> Tensor:
    """Of the stationary points z of an objective, those with a Hessian that is clearly not positive semidefinite are no minima.

    Asked up to n = 64: Cholesky's factorisation of the Hessian, shifted by √eps of its norm, fails there.
    """
    batch, n = z.shape
    found = status == Status.CONVERGED
    if (
        not equations.kind.minimised
        or not 0 < n <= DIAGNOSE_LIMIT
        or batch * n * n > DIAGNOSE_ENTRIES
        or finished(~found)
    ):
        return status
    with torch.no_grad():
        hessian = equations.jacobian(z).to_dense()
        if equations.kind.bounded:  # an unknown that its bound holds has a row of the identity: the others decide
            eye = torch.eye(n, dtype=hessian.dtype, device=hessian.device)
            held = (hessian == eye).all(-1)
            hessian = torch.where(held.unsqueeze(-2), eye, hessian)
        size = torch.linalg.matrix_norm(hessian)
        known = found & size.isfinite()
        shift = torch.where(known & (size > 0), torch.finfo(size.dtype).eps ** 0.5 * size, 1)
        hessian = torch.where(known[:, None, None], (hessian + hessian.mT) / 2, 0) + torch.diag_embed(
            shift.unsqueeze(-1).expand(batch, n)
        )
        failed = torch.linalg.cholesky_ex(hessian).info != 0
        return torch.where(known & failed, Status.SADDLE, status)
