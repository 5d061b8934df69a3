"""The implicit gradient beside backpropagation through the steps, as the number of forward steps grows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.workload import Workload
from benchmarks.workloads import tanh_cell

UNITS, BATCH, FEATURES = 256, 64, 64
STEPS = (10, 50, 200, 500)


def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    # An orthogonal matrix contracts by the same factor in every direction, so that convergence takes its time.
    W = 0.97 * np.linalg.qr(rng.standard_normal((UNITS, UNITS)))[0]
    return tanh_cell.arrays(rng, W, batch=BATCH, features=FEATURES, scale=0.05, dtype=np.float64)


workload = Workload(
    name="implicit_explicit",
    title="Implicit and explicit gradients",
    description=f"""
Fixed point of tanh(z Wᵀ + x Uᵀ + b), {UNITS} units, batch {BATCH}, float64, W = 0.97 times an orthogonal matrix;
gradients in W, U, b and x. The plain iteration runs the given number of steps; errors are against the true fixed
point and its gradient. The ratio is to the implicit gradient after the same number of steps.
""",
    parameters=tanh_cell.PARAMETERS,
    arrays=arrays,
    reference=tanh_cell.reference,
)


def _cell(p: dict[str, Any]) -> Callable[[Any], Any]:
    import torch

    W, injection = p["W"], torch.nn.functional.linear(p["x"], p["U"], p["b"])
    return lambda z: torch.tanh(torch.nn.functional.linear(z, W) + injection)


def _torchimplicit(steps: int, explicit: bool) -> Callable[[dict[str, Any]], Callable[[], Any]]:
    def build(p: dict[str, Any]) -> Callable[[], Any]:
        import torch

        import torchimplicit as ti

        z0 = torch.zeros_like(p["c"])
        adjoint: Any = ti.Unrolled() if explicit else ti.Implicit(rtol=1e-10)

        def solve() -> Any:
            # The tolerance lies beyond reach: exactly `steps` steps are wanted, and no warning that they are too few.
            options: dict[str, Any] = {"rtol": 1e-15, "atol": 0.0, "max_steps": steps, "on_failure": "ignore"}
            return ti.fixed_point(_cell(p), z0, solver="picard", adjoint=adjoint, batch_ndim=1, **options).value

        return solve

    return build


def _by_hand(steps: int) -> Callable[[dict[str, Any]], Callable[[], Any]]:
    def build(p: dict[str, Any]) -> Callable[[], Any]:
        import torch

        def solve() -> Any:
            f = _cell(p)
            z = torch.zeros_like(p["c"])
            for _ in range(steps):
                z = f(z)
            return z

        return solve

    return build


for steps in STEPS:
    implicit = f"implicit, {steps} steps"
    workload.torch(implicit, against=implicit)(_torchimplicit(steps, explicit=False))
    workload.torch(f"explicit, {steps} steps", against=implicit)(_torchimplicit(steps, explicit=True))
    workload.torch(f"explicit by hand, {steps} steps", against=implicit)(_by_hand(steps))
