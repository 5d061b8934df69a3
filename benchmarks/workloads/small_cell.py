"""A small equilibrium layer: Python and the calls of operators are all that it costs."""

from __future__ import annotations

import numpy as np

from benchmarks.workload import Workload
from benchmarks.workloads import cell_competitors, tanh_cell

UNITS, BATCH, FEATURES = 16, 5, 8
RMS = 0.44  # of the solution


def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    W = rng.standard_normal((UNITS, UNITS))
    W *= 0.9 / np.linalg.norm(W, 2)
    return tanh_cell.arrays(rng, W, batch=BATCH, features=FEATURES, scale=0.5, dtype=np.float32)


workload = Workload(
    name="small_cell",
    title="A 16-unit tanh cell, batch of 5",
    description=f"""
Fixed point of tanh(z Wᵀ + x Uᵀ + b), {UNITS} units, batch {BATCH}, float32, ‖W‖₂ = 0.9. Otherwise as the cell above: this is
what a step costs beside its arithmetic.
""",
    parameters=tanh_cell.PARAMETERS,
    arrays=arrays,
    reference=tanh_cell.reference,
)

cell_competitors.compete(workload, RMS)
