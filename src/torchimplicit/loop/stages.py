"""Several methods in turn, each for the systems that those before it have not solved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import values_hidden
from torchimplicit.loop.blocks import solve_in_blocks
from torchimplicit.loop.settings import LoopSettings
from torchimplicit.loop.solve import SearchResult, Watch, solve
from torchimplicit.solvers.equations import Equations
from torchimplicit.solvers.method import Method
from torchimplicit.status import Status, all_converged


def solve_in_stages(
    stages: Sequence[Method],
    equations: Equations,
    z0: Tensor,
    settings: LoopSettings,
    watch: Watch | None = None,
    keep_trace: bool = False,
) -> SearchResult:
    """Where the stages end. Its inverse is that of the first stage if this has solved every system; else there is none."""
    seen = watch is not None or keep_trace  # then the rows stay together
    forgiving = len(stages) > 1
    first = replace(settings, forgiving=forgiving, max_steps=min(settings.max_steps, stages[0].max_steps))
    if equations.part is not None and not seen:
        found = solve_in_blocks(stages[0], equations, z0, first)
    else:
        found = solve(stages[0], equations, z0, first, watch=watch, keep_trace=keep_trace)
    tried = 1
    if all_converged(found.status):
        return by_first(found, stages)
    solved_by = torch.where(found.status == Status.CONVERGED, 0, -1)
    length = found.steps.max()
    for stage in () if values_hidden() else stages[1:]:
        allowed = (settings.max_steps - found.steps).clamp(max=stage.max_steps)
        allowed = torch.where((found.status == Status.CONVERGED) | _hopeless(found), 0, allowed)
        rows = allowed.nonzero().flatten()
        if not len(rows):
            break
        limited = replace(settings, forgiving=forgiving, max_steps=int(allowed.max()))
        if equations.part is not None and not seen:
            part = equations.of_rows(rows)
            own = stage.of_rows(rows)
            later = solve(own, part, z0[rows], limited, allowed=allowed[rows])
            equations.add([(part, len(rows))], len(z0))
        else:
            z = torch.where((allowed > 0).unsqueeze(-1), z0, found.z)
            after = None if watch is None else _after(watch, int(length))
            later = solve(stage, equations, z, limited, watch=after, keep_trace=keep_trace, allowed=allowed)
        length = length + later.steps.max()
        found = _better(found, later, rows)
        solved_by[rows] = torch.where(found.status[rows] == Status.CONVERGED, tried, -1)
        tried += 1
    if not values_hidden():  # what is left may be solvable by what there were no steps for
        unsolved = (found.status != Status.CONVERGED) & ~_hopeless(found) & (found.steps >= settings.max_steps)
        found = replace(found, status=torch.where(unsolved, Status.MAX_STEPS, found.status))
    return replace(found, tried=_names(stages[:tried]), solved_by=solved_by)


def _hopeless(found: SearchResult) -> Tensor:
    """The systems (B,) that no other method can solve either."""
    ill_posed = (found.status == Status.STOCHASTIC) | (found.status == Status.COUPLED)
    return ill_posed | ~found.residual.isfinite()


def by_first(found: SearchResult, stages: Sequence[Method]) -> SearchResult:
    """Where the first of the stages has solved everything."""
    return replace(found, tried=_names(stages[:1]), solved_by=torch.zeros_like(found.status))


def _names(stages: Sequence[Method]) -> tuple[str, ...]:
    return tuple(stage.title for stage in stages)


def _after(watch: Watch, steps: int) -> Watch:
    """Watches a stage before which so many steps were taken: its start is no step."""

    def watch_later(k: int, z: Tensor, residual: Tensor) -> None:
        if k > 0:
            watch(steps + k, z, residual)

    return watch_later


def _better(found: SearchResult, later: SearchResult, rows: Tensor) -> SearchResult:
    """Per system the better of what was found and what a later stage has found for some rows."""
    if len(later.status) > len(rows):
        later = replace(later, **{name: getattr(later, name)[rows] for name in _PER_SYSTEM})
    better = (later.status == Status.CONVERGED) | (later.residual < found.residual[rows])

    def put(name: str) -> Tensor:
        old, new = getattr(found, name), getattr(later, name)
        chosen = torch.where(better.reshape(-1, *(1,) * (new.ndim - 1)), new, old[rows])
        return old.index_copy(0, rows, chosen)

    together: dict[str, Any] = {name: put(name) for name in ("z", "status", "residual", "error", "bound")}
    together["steps"] = found.steps.index_add(0, rows, later.steps)
    if found.trace is not None and later.trace is not None:
        together["trace"] = torch.cat([found.trace, later.trace[1:]])
    return replace(found, inverse=(), **together)


_PER_SYSTEM = ("z", "status", "steps", "residual", "error", "bound")
