"""The one loop around every solver: per-system convergence, best iterate, status, trace, callback, counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished, occurs, tracing, values_hidden
from torchimplicit.capture.randomness import random_state
from torchimplicit.graph.loop import Operands, StructureChanged, repeat
from torchimplicit.loop.complementary import complementary
from torchimplicit.loop.convergence import Course, where
from torchimplicit.loop.endings import (
    DOUBT,
    at_bounds,
    at_infinity,
    coupled,
    gain,
    jagged,
    local_minimum,
    second_order,
    singular,
    stochastic,
)
from torchimplicit.loop.gathering import Gathering, joined
from torchimplicit.loop.secant import Secant
from torchimplicit.loop.settings import LoopSettings
from torchimplicit.loop.vanishing import run_off, vanishes
from torchimplicit.norms import measured
from torchimplicit.solvers.equations import Equations, Estimate
from torchimplicit.solvers.method import Method
from torchimplicit.status import Status, all_converged

STRICTER = 10  # times, at least, where the estimates of a method were too small,
STRICTEST = 1e12  # and at most, all times together


@dataclass(frozen=True)
class SearchResult:
    """Where the loop ended; per system: status, steps, residual, the estimated error of z and the tolerance it was held against.

    inverse : the tensors of the approximate inverse of ∂g/∂z that the solver leaves behind; of one that has none, those of the
        second look at a minimum; or none.
    tried : the methods that ran, where there were several.
    solved_by : which of them has solved each system; -1 where none.
    counts : of evaluations and products, where they are not known before the graph runs that is being made.
    """

    z: Tensor
    status: Tensor
    steps: Tensor
    residual: Tensor
    error: Tensor
    bound: Tensor
    inverse: tuple[Tensor, ...] = ()
    trace: Tensor | None = None
    tried: tuple[str, ...] = ()
    solved_by: Tensor | None = None
    counts: tuple[Tensor, Tensor] | None = None


Watch = Callable[[int, Tensor, Tensor], None]
Advance = Callable[[Tensor, Tensor, Any], tuple[Tensor, Tensor, Any]]


def solve(
    solver: Method,
    equations: Equations,
    z: Tensor,
    settings: LoopSettings,
    *,
    watch: Watch | None = None,
    keep_trace: bool = False,
    advance: Advance | None = None,
    allowed: Tensor | None = None,
    began: tuple[Tensor, Tensor] | None = None,
) -> SearchResult:
    """Run ``solver`` from z, (B, n), until every system has a status.

    What is returned for a system is the best z that it has seen until it finished, whatever becomes of it while others go on.
    Inside a transform, where no value may decide what runs, ``max_steps`` masked steps run.
    ``advance`` replaces ``solver.step`` (to checkpoint it, say). ``allowed`` limits the steps of each system, (B,); one that is
    allowed none is left alone, and counts as converged. ``began`` : z, and the residual, where a solve began that this one continues.
    """
    z = solver.starting_point(z)
    if tracing():
        return _in_graph(solver, equations, z, settings, allowed)
    z0 = z
    gathering = Gathering(solver, equations, z)
    step: Advance = advance or (lambda z, r, state: solver.step(gathering.equations, z, r, state))
    noise = random_state(z.device)
    r, state = solver.init(equations, z)
    continues = began is not None
    if began is None and equations.kind.minimised:
        began = z.detach(), r.detach()
    estimate: Callable[..., Estimate | None] = _estimate_of(solver, settings, advance)
    lowest, judges = solver.merit(state), solver.has("verdict")
    doubts: dict[str, Any] = {}
    if not equations.kind.minimised:
        doubts["jagged"] = lambda z: jagged(gathering.equations, z)
    if not equations.kind.bounded:
        doubts["vanishes"] = lambda z, z0: vanishes(gathering.equations, z, z0)
        doubts["partly"] = not equations.kind.near_identity  # to these `run_off` sees
    with torch.no_grad():
        course = Course.at(settings, solver.patience, z, r, estimate(z, r, state), lowest, allowed, judges, doubts)
    started = course.start  # of all rows
    trace = [course.norm] if keep_trace else []
    if watch is not None:
        watch(0, z, course.norm)
    if settings.exactly is not None:
        return _exactly(step, equations, course, estimate, state, trace, watch)

    keeps_inverse = advance is None and solver.has("inverse")  # or its states are not the solver's
    inverse_of: Callable[[Any], tuple[Tensor, ...]] = solver.inverse if keeps_inverse else lambda _: ()
    attempt: Any = equations.attempt if settings.forgiving else _taken
    taken = 0
    _end_noisy(course, equations.noisy, taken)
    while taken < settings.max_steps and course.left:
        there = attempt(step, course.z, course.r, state)
        if there is None:
            course.end_all(Status.NONFINITE, taken)
            break
        z, r, state = there
        taken += 1
        _end_noisy(course, equations.noisy, taken)
        if keep_trace:
            trace.append(torch.where(course.running, measured(r.detach()), trace[-1]))
        with torch.no_grad():
            look = partial(gain, solver, gathering.equations, estimate)
            guess = estimate(z, r, state)
        ends, verdict = course.follow(z, r, guess, partial(solver.merit, state), look)  # z keeps its graph
        ends, verdict = course.ended_by(solver.verdict(state), ends, verdict)
        if course.vanished is not None:
            ends, verdict = course.ended_by(
                torch.where(course.vanished, Status.DIVERGED, Status.RUNNING), ends, verdict
            )
        ends, verdict = course.out_of_steps(taken, ends, verdict)
        if watch is not None:
            running = course.running
            watch(taken, where(running, course.z, course.best_z), torch.where(running, course.norm, course.best))
        if course.end(ends, verdict, taken) and not (keep_trace or watch):
            if gathering.pays(course.left, len(course.running)):
                rows = gathering.keep(course.running, course.results, inverse_of(state))
                course = course.of_rows(rows)
                course.r, state = gathering.restart(rows, course.z, course.r, state)
    course.end_all(Status.MAX_STEPS, taken)
    (best_z, best, status, steps, error, bound), inverse = gathering.all(course.results, inverse_of(state))

    if equations.kind.near_identity:
        status = run_off(equations, z0.detach(), best_z.detach(), started, status)
    failed = (course.noted or equations.kind.near_identity) and not all_converged(status)
    if failed:
        status = singular(equations, z0.detach(), best_z.detach(), best, status)
    if failed and not judges:  # to one that judges for itself a jump between two signs is no minimum
        status = local_minimum(equations, z0.detach(), best_z.detach(), status)
    strayed = course.strayed(DOUBT) if course.z.shape == best_z.shape else None
    if strayed is not None and occurs(strayed):
        status = coupled(equations, best_z.detach(), best, status, strayed)
    drawn = not torch.equal(noise, random_state(z.device))
    if (failed or drawn) and not finished(status == Status.STOCHASTIC):
        status = stochastic(solver, equations, best_z.detach(), best, status)
    found = SearchResult(best_z, status, steps, best, error, bound, inverse, torch.stack(trace) if trace else None)
    bounds = equations.bounds(best_z) if equations.kind.bounded else None
    if bounds is not None:
        best_z = at_bounds(equations, best_z, *bounds, settings.tolerance)
        status, error = complementary(equations, best_z.detach(), *bounds, status, error, bound, settings.tolerance)
    if not equations.kind.minimised:
        return replace(found, z=best_z, status=status, error=error)
    known = advance is None and best_z is course.z and bounds is None
    own = solver.hessian(state) if known else None
    hessian = None if own is None else (course.r.detach(), own.detach())
    status, error, excess, polish, of_hessian = second_order(
        equations,
        best_z.detach(),
        status,
        error,
        settings.tolerance,
        hessian,
        bounds,
        began if bounds is None else None,
        course.slow(best_z),
    )
    best_z = best_z if polish is None else best_z - polish
    inverse = inverse if keeps_inverse else of_hessian
    found = replace(found, z=best_z, status=status, error=error, inverse=inverse)
    if advance is None and not values_hidden() and occurs(excess) and settings.strictness < STRICTEST:
        stricter = replace(settings, strictness=settings.strictness * max(STRICTER, float(excess.max())))
        rest = torch.where(excess > 0, (settings.max_steps - steps).clamp(min=0), 0)
        found = _after(
            found,
            solve(solver, equations, best_z.detach(), stricter, keep_trace=keep_trace, allowed=rest, began=began),
            rest > 0,
        )
    if began is not None and not (continues or values_hidden() or all_converged(found.status)):
        found = replace(found, status=at_infinity(equations, began[0], found.z.detach(), found.status))
    return found


def _in_graph(
    solver: Method, equations: Equations, z: Tensor, settings: LoopSettings, allowed: Tensor | None
) -> SearchResult:
    """The same loop as one operator of a graph that is being made: no value is seen, and every step is masked."""
    restarts = solver.has("restart")
    z0, operands = z.detach(), equations.operands
    assert operands is not None
    with torch.no_grad():
        r, state = solver.init(equations, z)
        first, lowest = solver.estimate(z, r, state), solver.merit(state)
        course = Course.at(settings, solver.patience, z, r, first, lowest, allowed, solver.has("verdict"), {})
        at_start = equations.evaluations, equations.products
        in_a_step = 0, 0

        def step(carried: _Carried) -> _Carried:
            nonlocal in_a_step
            of_course, memory, taken = carried
            course = _running(settings, solver.patience, of_course, dict(zip(names, fixed.tensors, strict=True)))
            state = memory
            if restarts:
                _, state = solver.restart(equations, course.z, memory)
            z, r, state = solver.step(equations, course.z, course.r, state)
            taken = taken + 1
            ends, verdict = course.follow(z, r, solver.estimate(z, r, state), partial(solver.merit, state), _unseen)
            ends, verdict = course.ended_by(solver.verdict(state), ends, verdict)
            ends, verdict = course.out_of_steps(taken, ends, verdict)
            course.end(ends, verdict, taken)
            course.end(course.running & (taken >= settings.max_steps), course.status + Status.MAX_STEPS, taken)
            in_a_step = equations.evaluations - at_start[0], equations.products - at_start[1]
            equations.evaluations, equations.products = at_start
            return _carried(course), solver.remembered(state) if restarts else state, taken

        def going(carried: _Carried) -> Tensor:
            return carried[0]["running"].any()

        def going_lightly(carried: _Carried) -> Tensor:
            outgrown = solver.outgrown(carried[1])
            assert outgrown is not None
            return going(carried) & ~outgrown

        memory = solver.remembered(state) if restarts else state
        if not settings.max_steps:
            course.end_all(Status.MAX_STEPS, 0)
        carried = _carried(course), memory, course.steps.new_zeros(())
        names = [name for name in _FIXED if getattr(course, name) is not None]
        fixed = Operands([getattr(course, name) for name in names], outer=operands)
        if settings.max_steps and solver.outgrown(memory) is not None:
            of_course, memory, taken = repeat(going_lightly, step, carried, fixed)
            carried = of_course, solver.grown(of_course["z"], of_course["r"], memory), taken
        if settings.max_steps:
            try:
                carried = repeat(going, step, carried, fixed)
            except StructureChanged:  # what a method remembers is of another structure from the first step on
                carried = repeat(going, step, step(carried), fixed)
        of_course, _, taken = carried
        evaluations = equations.evaluations + in_a_step[0] * taken
        products = equations.products + in_a_step[1] * taken
    z, best, status, steps, error, bound = (of_course[name] for name in _RESULTS)
    bounds = equations.bounds(z) if equations.kind.bounded else None
    if bounds is not None:
        z = at_bounds(equations, z, *bounds, settings.tolerance)
    if equations.kind.minimised:
        status, error, _, polish, _ = second_order(equations, z, status, error, settings.tolerance, bounds=bounds)
        z = z if polish is None else z - polish
    if equations.kind.near_identity:
        status = run_off(equations, z0, z, course.start, status)
    return SearchResult(z, status, steps, best, error, bound, counts=(evaluations, products))


_Carried = tuple[dict[str, Any], Any, Tensor]
# What a loop in a graph carries of a course takes as many buffers, and passes over the memory. So what is fixed is not carried, and
# what is known of systems that run has one place with what is known of those that have ended.
_FIXED = ("start", "first", "allowed")
_PLACES = {"mark": "error", "unit": "bound", "stuck": "steps"}
_CARRIED = ("z", "r", "best_z", "best", "lowest", "running", "status", "size", "before")
_RESULTS = ("best_z", "best", "status", "stuck", "mark", "unit")


def _carried(course: Course) -> dict[str, Any]:
    """The part of a course that a loop in a graph carries."""

    def whole(name: str) -> Any:
        found = getattr(course, name)
        return found if found is None or isinstance(found, Tensor) else torch.full_like(course.norm, found)

    found = {name: whole(name) for name in _CARRIED}
    shared = {
        runs: torch.where(course.running, getattr(course, runs), getattr(course, ended))
        for runs, ended in _PLACES.items()
    }
    return found | shared


def _running(settings: LoopSettings, patience: int, carried: dict[str, Any], fixed: dict[str, Tensor]) -> Course:
    """The course again."""
    others = {"norm": measured(carried["r"]), "allowed": None}
    of_ended = {ended: carried[runs] for runs, ended in _PLACES.items()}
    return Course(settings, patience, left=-1, noted=True, **(carried | others | of_ended | fixed))


def _unseen(z: Tensor, correction: Tensor) -> Tensor:
    raise AssertionError("a gain is looked for where values are seen")


def _after(found: SearchResult, later: SearchResult, rows: Tensor) -> SearchResult:
    """Where some systems have gone on to."""

    def put(old: Tensor, new: Tensor) -> Tensor:
        return torch.where(rows.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

    together: dict[str, Any] = {
        name: put(getattr(found, name), getattr(later, name)) for name in ("z", "status", "residual", "error", "bound")
    }
    inverse = joined((found.inverse, later.inverse), put)
    trace = None if found.trace is None or later.trace is None else torch.cat([found.trace, later.trace[1:]])
    return replace(
        found, **together, steps=found.steps + torch.where(rows, later.steps, 0), inverse=inverse, trace=trace
    )


def _exactly(
    step: Advance,
    equations: Equations,
    course: Course,
    estimate: Callable[..., Estimate | None],
    state: Any,
    trace: list[Tensor],
    watch: Watch | None,
) -> SearchResult:
    """Where a number of steps leads, whatever happens."""
    z, r, settings = course.z, course.r, course.settings
    norm, exactly = course.norm, settings.exactly or 0
    done = torch.zeros_like(course.running)
    for taken in range(1, exactly + 1):
        z, r, state = step(z, r, state)
        norm = measured(r.detach())
        course.z, course.r, course.norm = z, r, norm
        with torch.no_grad():
            arrived = course.arrived(estimate(z, r, state), settings.tolerance.bound(z.detach()))
            done = torch.zeros_like(course.running) if arrived is None else arrived
        if trace:
            trace.append(norm)
        if watch is not None:
            watch(taken, z, norm)
    course.end(course.running, torch.where(done, Status.CONVERGED, Status.MAX_STEPS), exactly)
    status = torch.where(norm.isfinite(), course.status, Status.NONFINITE)
    bounds = equations.bounds(z.detach()) if equations.kind.bounded else None
    status, error, *_ = second_order(equations, z.detach(), status, course.error, settings.tolerance, bounds=bounds)
    steps = torch.full_like(status, exactly)
    return SearchResult(z, status, steps, norm, error, course.bound, trace=torch.stack(trace) if trace else None)


def _estimate_of(
    solver: Method, settings: LoopSettings, advance: Advance | None
) -> Callable[[Tensor, Tensor, Any], Estimate | None]:
    """What estimates the error of z: the method itself, if it can, and if its states are its own."""
    return solver.estimate if solver.has("estimate") and advance is None else Secant(settings.tolerance)


def _end_noisy(course: Course, noisy: Tensor | None, taken: int) -> None:
    """Systems whose function was seen to give two answers for one z have nothing to converge to."""
    if noisy is not None and noisy.shape == course.running.shape and occurs(noisy):
        course.end(
            noisy & course.running if taken else noisy, torch.where(noisy, Status.STOCHASTIC, course.status), taken
        )


def _taken(step: Advance, z: Tensor, r: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
    return step(z, r, state)
