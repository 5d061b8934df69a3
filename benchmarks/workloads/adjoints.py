"""Exact and approximate gradients of one trained equilibrium layer: what they are off by, and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from benchmarks.workload import Workload
from benchmarks.workloads.tanh_cell import PARAMETERS, reference

UNITS, BATCH = 64, 128
RTOL = 1e-6


@cache
def _trained() -> dict[str, np.ndarray]:
    """The layer z = tanh(z Wᵀ + x Uᵀ + b) before a linear one, trained to tell handwritten digits apart through 25 of its steps."""
    import torch
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    digits = load_digits()
    x = torch.from_numpy(digits.data / 16.0)
    y = torch.from_numpy(digits.target)
    features = x.shape[1]
    W = (torch.randn(UNITS, UNITS, dtype=torch.float64) * 0.5 / UNITS**0.5).requires_grad_()
    U = (torch.randn(UNITS, features, dtype=torch.float64) / features**0.5).requires_grad_()
    b = torch.zeros(UNITS, dtype=torch.float64, requires_grad=True)
    head = torch.nn.Linear(UNITS, 10, dtype=torch.float64)
    optimiser = torch.optim.Adam([W, U, b, *head.parameters()], lr=5e-3)

    def loss(z: Any, rows: Any) -> Any:
        return torch.nn.functional.cross_entropy(head(z), y[rows])

    def steps(rows: Any) -> Any:
        z = torch.zeros(len(rows), UNITS, dtype=torch.float64)
        for _ in range(25):
            z = torch.tanh(z @ W.T + x[rows] @ U.T + b)
        return z

    for _ in range(100):
        rows = torch.randint(len(x), (BATCH,))
        optimiser.zero_grad()
        loss(steps(rows), rows).backward()
        optimiser.step()
    rows = torch.arange(BATCH)
    z = steps(rows).detach().requires_grad_()
    (c,) = torch.autograd.grad(loss(z, rows), z)
    made = {"W": W, "U": U, "b": b, "x": x[rows], "c": c}
    return {name: tensor.detach().numpy().copy() for name, tensor in made.items()}


workload = Workload(
    name="adjoints",
    title="Gradients of a trained layer",
    description=f"""
The layer z = tanh(z Wᵀ + x Uᵀ + b) of {UNITS} units, trained on handwritten digits, batch {BATCH}; the gradient of the training loss.
float64, forward to a relative error of {RTOL:.0e}. The gradient error is the largest over W, U, b and x, the cosine the smallest.
""",
    parameters=PARAMETERS,
    arrays=lambda rng: dict(_trained()),
    reference=reference,
    approximate=True,
)


def _row(name: str, solver: str, adjoint: Callable[[Any], Any], note: str = "") -> None:
    @workload.torch(name, note=note)
    def build(p: dict[str, Any]) -> Callable[[], Any]:
        import torch

        import torchimplicit as ti

        def cell(z: Any, W: Any, injection: Any) -> Any:
            return torch.tanh(torch.nn.functional.linear(z, W) + injection)

        start = torch.zeros_like(p["c"])
        options: dict[str, Any] = {"solver": solver, "adjoint": adjoint(ti), "batch_ndim": 1, "rtol": RTOL}

        def solve() -> Any:
            injection = torch.nn.functional.linear(p["x"], p["U"], p["b"])
            return ti.fixed_point(cell, start, (p["W"], injection), **options).value

        return solve


_row("exact, after anderson", "anderson", lambda ti: ti.Implicit())
_row("SHINE, after anderson", "anderson", lambda ti: ti.SHINE(), "from six differences of each sample")
_row("exact, after broyden", "broyden", lambda ti: ti.Implicit())
_row("SHINE, after broyden", "broyden", lambda ti: ti.SHINE())
_row("one step", "anderson", lambda ti: ti.OneStep())
_row("phantom", "anderson", lambda ti: ti.Phantom(5, 0.5), "five steps, damped by a half")
_row("Neumann, 5", "anderson", lambda ti: ti.Implicit(ti.linear.Neumann(5)), "five terms of the series")
_row("Neumann, 20", "anderson", lambda ti: ti.Implicit(ti.linear.Neumann(20)))
