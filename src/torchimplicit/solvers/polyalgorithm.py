"""Several methods in turn: the cheap one first, the robust ones for what it has not solved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchimplicit.solvers.blocks import solve_in_blocks
from torchimplicit.solvers.course import Stopping
from torchimplicit.solvers.equations import Equations, Solver
from torchimplicit.solvers.loop import Found, Watch, solve
from torchimplicit.state import Layout
from torchimplicit.status import Status, all_converged
from torchimplicit.transforms import values_hidden


@dataclass(frozen=True)
class Polyalgorithm:
    """The stages one after the other, each from z0, for those systems that none before it has solved.

    Where the first stage solves everything nothing else is evaluated. Systems that are done are frozen, or gathered out where
    the call says which arguments carry the batch (``batched=``). A stage takes at most its own number of steps, and all
    together at most ``max_steps``. A system that no stage solves keeps the best point of all, and the status of the stage that
    found it. Where g raises in a step of a method that does not shorten its steps, that stage ends for the whole batch.
    ``info.tried`` names the stages that ran, ``info.solved_by`` says which of them solved each system.

    ``Unrolled`` records the steps of the first stage only; so does a solve under a transform, where no value may decide what
    runs next.
    """

    stages: Sequence[Solver]

    def __post_init__(self) -> None:
        stages = self.stages
        if not isinstance(stages, (tuple, list)) or not stages:
            raise ValueError(f"Polyalgorithm needs a tuple of solvers, at least one; got {stages!r}.")
        for stage in stages:
            known = all(hasattr(stage, part) for part in ("init", "step", "max_steps", "patience"))
            if isinstance(stage, (type, Polyalgorithm)) or not known:
                raise TypeError(
                    f"Polyalgorithm: each stage must be an object of torchimplicit.solvers, such as Newton(), and no Polyalgorithm "
                    f"itself; got {stage!r}."
                )

    @property
    def max_steps(self) -> int:
        """Of all stages together."""
        return sum(stage.max_steps for stage in self.stages)

    @property
    def patience(self) -> int:
        """Of the first stage."""
        return self.stages[0].patience

    def fitted(self, layout: Layout) -> Polyalgorithm:
        """With every stage fitted that wants to be."""
        if not any(hasattr(stage, "fitted") for stage in self.stages):
            return self
        return replace(self, stages=[s.fitted(layout) if hasattr(s, "fitted") else s for s in self.stages])

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, Any]:
        """Of the first stage."""
        return self.stages[0].init(equations, z)

    def step(self, equations: Equations, z: Tensor, r: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        """Of the first stage."""
        return self.stages[0].step(equations, z, r, state)


def solve_in_stages(
    stages: Sequence[Solver],
    equations: Equations,
    z0: Tensor,
    stopping: Stopping,
    watch: Watch | None = None,
    keep_trace: bool = False,
) -> Found:
    """Where the stages end. Its inverse is that of the first stage if this has solved every system; else there is none."""
    seen = watch is not None or keep_trace  # then the rows stay together
    forgiving = len(stages) > 1
    first = replace(stopping, forgiving=forgiving, max_steps=min(stopping.max_steps, stages[0].max_steps))
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
        allowed = (stopping.max_steps - found.steps).clamp(max=stage.max_steps)
        allowed = torch.where((found.status == Status.CONVERGED) | _hopeless(found), 0, allowed)
        rows = allowed.nonzero().flatten()
        if not len(rows):
            break
        limited = replace(stopping, forgiving=forgiving, max_steps=int(allowed.max()))
        if equations.part is not None and not seen:
            part = equations.of_rows(rows)
            own = stage.of_rows(rows) if hasattr(stage, "of_rows") else stage
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
        unsolved = (found.status != Status.CONVERGED) & ~_hopeless(found) & (found.steps >= stopping.max_steps)
        found = replace(found, status=torch.where(unsolved, Status.MAX_STEPS, found.status))
    return replace(found, tried=_names(stages[:tried]), solved_by=solved_by)


def _hopeless(found: Found) -> Tensor:
    """The systems (B,) that no other method can solve either."""
    ill_posed = (found.status == Status.STOCHASTIC) | (found.status == Status.COUPLED)
    return ill_posed | ~found.residual.isfinite()


def by_first(found: Found, stages: Sequence[Solver]) -> Found:
    """Where the first of the stages has solved everything."""
    return replace(found, tried=_names(stages[:1]), solved_by=torch.zeros_like(found.status))


def _names(stages: Sequence[Solver]) -> tuple[str, ...]:
    return tuple(type(stage).__name__ for stage in stages)


def _after(watch: Watch, steps: int) -> Watch:
    """Watches a stage before which so many steps were taken: its start is no step."""

    def watch_later(k: int, z: Tensor, residual: Tensor) -> None:
        if k > 0:
            watch(steps + k, z, residual)

    return watch_later


def _better(found: Found, later: Found, rows: Tensor) -> Found:
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
