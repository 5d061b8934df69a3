"""Steps for all systems of a batch at once, each to its own end."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import count, finished, values_hidden
from torchimplicit.programs.quadratic import OneSided
from torchimplicit.status import Status

GATHERED = 0.75  # of the systems still run: then the others are left out

State = tuple[Tensor, ...]  # (B, ·, 1) each


def together(
    program: OneSided,
    state: State,
    steps: Tensor,
    max_steps: int,
    look: Callable[[OneSided, State], Tensor],
    step: Callable[[OneSided, State], State],
) -> tuple[State, Tensor, Tensor]:
    """The states in which the systems end; how, (B,), and after how many steps, of which each has made ``steps`` before.

    ``look`` tells what each system has come to: RUNNING where it goes on. What has ended stays as it is."""
    status, found, steps = torch.full_like(steps, int(Status.RUNNING)), state, steps.clone()
    rows = torch.arange(len(steps), device=steps.device)
    while True:
        before = status[rows]
        status[rows] = torch.where(before == Status.RUNNING, look(program, state), before)
        running = (status[rows] == Status.RUNNING) & (steps[rows] < max_steps)
        if finished(~running):
            break
        if not values_hidden() and count(running) < GATHERED * len(rows):
            found = _put(found, rows, state)
            kept = running.nonzero().squeeze(-1)
            rows, program, running = rows[kept], program.of_systems(kept), running[kept]
            state = tuple(part[kept] for part in state)
        moved = step(program, state)
        if not finished(running):
            keep = running.reshape(-1, 1, 1)
            moved = tuple(torch.where(keep, new, old) for new, old in zip(moved, state, strict=True))
        state = moved
        steps[rows] = steps[rows] + running.long()
    status = torch.where(status == Status.RUNNING, Status.MAX_STEPS, status)
    return _put(found, rows, state), status, steps


def _put(all_of_them: State, rows: Tensor, some: State) -> State:
    """With some in their rows."""
    return tuple(a.index_copy(0, rows, b) for a, b in zip(all_of_them, some, strict=True))
