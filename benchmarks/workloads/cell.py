"""A wide deep-equilibrium cell: the forward is bound by one matrix product per step, so the number of steps and what is
done between the products decide."""

from __future__ import annotations

import numpy as np

from benchmarks.workload import Workload
from benchmarks.workloads import cell_competitors, tanh_cell

UNITS, BATCH, FEATURES = 512, 128, 256
RMS = 0.44  # of the solution


def arrays(rng: np.random.Generator, batch: int = BATCH) -> dict[str, np.ndarray]:
    W = rng.standard_normal((UNITS, UNITS))
    W *= 0.95 / np.linalg.norm(W, 2)
    return tanh_cell.arrays(rng, W, batch=batch, features=FEATURES, scale=0.5, dtype=np.float32)


workload = Workload(
    name="cell",
    title="A 512-unit tanh cell",
    description=f"""
Fixed point of tanh(z Wᵀ + x Uᵀ + b), {UNITS} units, batch {BATCH}, float32, ‖W‖₂ = 0.95; gradients in W, U, b and x.
Everybody starts at zero, computes the injection x Uᵀ + b once, and stops at a relative residual of
{cell_competitors.RTOL:.0e}, forward and backward.
""",
    parameters=tanh_cell.PARAMETERS,
    arrays=arrays,
    reference=tanh_cell.reference_by_iteration,
)

cell_competitors.compete(workload, RMS)
