"""What a training step needs in memory as the number of forward steps grows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.workload import Workload
from benchmarks.workloads import cell, cell_competitors, tanh_cell

BATCH = 2048
STEPS = (10, 50, 200)


def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return cell.arrays(rng, batch=BATCH)


workload = Workload(
    name="memory",
    title="Memory against steps",
    description=f"""
The cell above with a batch of {BATCH:,} (z is {BATCH * cell.UNITS * 4 / 2**20:.0f} MiB), made to take the given number
of forward steps by a tolerance of zero; the backward stops at {cell_competitors.RTOL:.0e} as above. Nothing is timed;
the ratio is that of the peaks, to the loop by hand with as many steps.
""",
    parameters=tanh_cell.PARAMETERS,
    arrays=arrays,
    reference=tanh_cell.reference_by_iteration,
    memory_only=True,
)


def _implicit(method: str, steps: int) -> Callable[[dict[str, Any]], Callable[[], Any]]:
    return lambda p: cell_competitors.forced(p, method, steps)


def _unrolled(steps: int) -> Callable[[dict[str, Any]], Callable[[], Any]]:
    def build(p: dict[str, Any]) -> Callable[[], Any]:
        import torchimplicit as ti

        return cell_competitors.forced(p, "Picard", steps, adjoint=ti.Unrolled(steps))

    return build


def _torchdeq(solver: str, steps: int) -> Callable[[dict[str, Any]], Callable[[], Any]]:
    return lambda p: cell_competitors.torchdeq(p, ift=True, f_solver=solver, f_max_iter=steps, f_tol=0.0)


def _by_hand(steps: int) -> Callable[[dict[str, Any]], Callable[[], Any]]:
    return lambda p: cell_competitors.by_hand(p, steps)


for steps in STEPS:
    hand = f"torch by hand, {steps} steps"
    workload.torch(f"implicit, picard, {steps} steps", against=hand)(_implicit("Picard", steps))
    workload.torch(f"implicit, anderson, {steps} steps", against=hand)(_implicit("Anderson", steps))
    workload.torch(f"unrolled, {steps} steps", against=hand)(_unrolled(steps))
    workload.torch(f"torchdeq, {steps} steps", against=hand, packages=("torchdeq",))(
        _torchdeq("fixed_point_iter", steps)
    )
    workload.torch(f"torchdeq, anderson, {steps} steps", against=hand, packages=("torchdeq",))(
        _torchdeq("anderson", steps)
    )
    workload.torch(hand, against=hand)(_by_hand(steps))
