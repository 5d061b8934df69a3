"""The wide cell where it contracts slowly: now what a step costs counts as much as how many steps a method can save."""

from __future__ import annotations

import numpy as np

from benchmarks.workload import Workload
from benchmarks.workloads import cell_competitors, tanh_cell

UNITS, BATCH, FEATURES = 512, 128, 256
RMS = 0.23  # of the solution


def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    # With a symmetric matrix and a weak input, so that tanh hardly saturates, the contraction comes near the norm.
    W = rng.standard_normal((UNITS, UNITS))
    W = W + W.T
    W *= 0.97 / np.linalg.norm(W, 2)
    return tanh_cell.arrays(rng, W, batch=BATCH, features=FEATURES, scale=0.12, dtype=np.float32)


workload = Workload(
    name="slow_cell",
    title="The same cell, contracting slowly",
    description=f"""
Fixed point of tanh(z Wᵀ + x Uᵀ + b), {UNITS} units, batch {BATCH}, float32, W symmetric with ‖W‖₂ = 0.97 and a weak
input: the plain iteration contracts by about 0.91 and takes about 116 steps. Otherwise as the cell above. At this
contraction an error is ten times the residual. torchimplicit stops each sample when it has met the tolerance, torchdeq
and the loops by hand all of them when the last one has, jaxopt and optimistix when the batch as a whole has.
""",
    parameters=tanh_cell.PARAMETERS,
    arrays=arrays,
    reference=tanh_cell.reference_by_iteration,
)

cell_competitors.compete(workload, RMS)
