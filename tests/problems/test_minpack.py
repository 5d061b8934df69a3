"""Method × problem: the 23 standard systems of nonlinear equations from their standard starts, and the derivatives of their roots.

``python -m tests.problems.test_minpack`` writes the table with SciPy's methods beside ours, ``minpack.md``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

import torchimplicit as ti
from tests.problem_sets.minpack import SYSTEMS, System
from torchimplicit.solvers import Backtracking, Newton

METHODS: dict[str, Any] = {
    "auto": "auto",
    "newton": "newton",
    "newton, line search": Newton(line_search=Backtracking()),
    "newton, non-monotone": Newton(line_search=Backtracking(memory=10)),
    "dogleg": "dogleg",
    "levenberg_marquardt": "levenberg_marquardt",
    "gauss_newton": "gauss_newton",
    "pseudo_transient": "pseudo_transient",
    "newton_krylov": "newton_krylov",
    "broyden": "broyden",
    "anderson": "anderson",
}
SCIPY = ["hybr", "lm", "krylov", "broyden1", "df-sane"]

ROSENBROCK, FREUDENSTEIN = "generalised Rosenbrock", "Freudenstein and Roth"

# Rosenbrock's valley of ten dimensions is long and narrow: who gets through it takes hundreds of steps. From the start of
# Freudenstein and Roth every method that only goes downhill ends in a local minimum of the norm, which is no root.
FAILURES: dict[str, set[str]] = {
    "auto": set(),
    "newton": {ROSENBROCK, FREUDENSTEIN, "Chebyquad 7", "Brown almost linear 10"},
    "newton, line search": {ROSENBROCK, FREUDENSTEIN, "Powell badly scaled", "Brown almost linear 10"},
    "newton, non-monotone": {ROSENBROCK, FREUDENSTEIN, "Brown almost linear 10"},
    "dogleg": {FREUDENSTEIN, "trigonometric", "Hammarling 2 by 2", "Hammarling 3 by 3"},
    "levenberg_marquardt": {FREUDENSTEIN, "trigonometric", "Hammarling 2 by 2", "Hammarling 3 by 3"},
    "gauss_newton": {ROSENBROCK, FREUDENSTEIN},
    "pseudo_transient": {ROSENBROCK, "Powell badly scaled", "Chebyquad 7", "trigonometric"},
    "newton_krylov": {ROSENBROCK, "Chebyquad 7"},
    "broyden": {
        ROSENBROCK,
        "Powell singular",
        "Wood",
        "helical valley",
        "Watson 6",
        "Chebyquad 7",
        "trigonometric",
        "variably dimensioned",
        "Brown almost linear 10",
        "Broyden tridiagonal",
        "Broyden banded",
    },
    "anderson": {ROSENBROCK, "Wood", "helical valley", "Watson 6", "variably dimensioned"},
}

# Whether these find the way out of the valley differs between processors, and with the number of threads.
BY_ROUNDING = {("newton_krylov", FREUDENSTEIN), ("broyden", FREUDENSTEIN)}

# Half of Newton's first step, from 1 by −2, ends exactly on the root: what that saves says nothing about the method.
LUCKY = {("gauss_newton", "scalar z(z - 5)²")}

LONG = {"dogleg", "levenberg_marquardt"}  # a thousand steps on Hammarling's systems
SINGULAR = [system for system in SYSTEMS if system.singular]
REGULAR = [system for system in SYSTEMS if not system.singular]


def solve(
    system: System, solver: Any, p: Tensor | None = None, z0: Tensor | None = None, **keywords: Any
) -> ti.Solution:
    start, given = system.start if z0 is None else z0, system.p if p is None else p
    tolerance = {"rtol": 0.0, "atol": 1e-8, "on_failure": "ignore"} | keywords
    return ti.root(system.g, start, (given,), solver=solver, **tolerance)


def solved(system: System, z: Tensor) -> bool:
    return bool(system.g(z, system.p).abs().max() <= 1e-6)


@pytest.mark.sampled(9)
@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[pytest.mark.slow] * (m in ("dogleg", "levenberg_marquardt"))) for m in METHODS]
)
def test_every_system_is_solved_or_the_failure_is_expected(method: str) -> None:
    failed = set()
    for system in SYSTEMS:
        z, info = solve(system, METHODS[method])
        if (method, system.name) in BY_ROUNDING:
            assert not info.converged or solved(system, z)
        elif not info.converged:
            failed.add(system.name)
        else:
            assert solved(system, z), system.name
    assert failed == FAILURES[method]


# Near a singular root it is luck who stops when.
@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "system", [system for system in REGULAR if system.name not in FAILURES["newton"]], ids=lambda system: system.name
)
def test_auto_costs_little_more_than_the_best_single_method_where_newton_succeeds(system: System) -> None:
    costs = {
        name: int(solve(system, solver).info.evaluations)
        for name, solver in METHODS.items()
        if system.name not in FAILURES[name] and (name, system.name) not in LUCKY
    }
    assert costs["auto"] <= max(1.3 * min(costs.values()), 1 + min(costs.values())), costs


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "system",
    [pytest.param(s, marks=[pytest.mark.slow] * (s.name == ROSENBROCK)) for s in REGULAR],
    ids=lambda system: system.name,
)
def test_the_gradient_is_that_of_central_differences(system: System) -> None:
    weights = torch.cos(torch.arange(system.n, dtype=torch.float64))
    p = system.p.clone().requires_grad_()
    z = solve(system, "auto", p, atol=1e-13).value
    (grad,) = torch.autograd.grad((weights * z).sum(), p)

    def moved(by: float) -> Tensor:
        return (weights * solve(system, "newton", system.p + by, z.detach(), atol=1e-15).value).sum()

    h = 1e-6
    near, far = moved(h) - moved(-h), moved(2 * h) - moved(-2 * h)
    torch.testing.assert_close(grad, (8 * near - far) / (12 * h), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("system", SINGULAR, ids=lambda system: system.name)
def test_where_the_jacobian_is_singular_at_the_root_the_backward_says_so(system: System) -> None:
    p = system.p.clone().requires_grad_()
    z = solve(system, "auto", p, on_failure="warn").value
    with pytest.warns(ti.ConvergenceWarning, match="singular"):
        z.sum().backward()


def by_scipy(system: System, method: str) -> tuple[Tensor, int]:
    """The root and the evaluations of g, those for differences of hybr and lm included; at tight tolerances."""
    calls = 0

    def g(z: Any) -> Any:
        nonlocal calls
        calls += 1
        return system.g(torch.as_tensor(np.array(z)), system.p).numpy()

    options: dict[str, dict[str, float]] = {
        "hybr": {"xtol": 1e-13},
        "lm": {"xtol": 1e-13, "ftol": 1e-13},
        "krylov": {"fatol": 1e-7, "maxiter": 1000},
        "broyden1": {"fatol": 1e-7, "maxiter": 1000},
        "df-sane": {"fatol": 1e-8, "ftol": 0.0, "maxfev": 5000},
    }
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = scipy.optimize.root(g, system.start.numpy(), method=method, options=options[method])
    return torch.as_tensor(found.x), calls


def table() -> str:
    """In each cell the evaluations; a dash where no root was found."""

    def ours(solver: Any) -> Callable[[System], tuple[Tensor, int, int]]:
        def run(system: System) -> tuple[Tensor, int, int]:
            z, info = solve(system, solver)
            return z, int(info.evaluations), int(info.products)

        return run

    def theirs(method: str) -> Callable[[System], tuple[Tensor, int, int]]:
        return lambda system: (*by_scipy(system, method), 0)

    columns = [(name, ours(solver)) for name, solver in METHODS.items()]
    columns += [(f"SciPy {name}", theirs(name)) for name in SCIPY]
    lines = [
        "# The 23 standard systems of nonlinear equations",
        "",
        "Evaluations of g until ‖g‖∞ ≤ 1e-6, from the standard starts in float64; – where it was not reached. Ours take Jacobians",
        "from vector-Jacobian products, n for each dense one, and GMRES's products, which are the second number; SciPy's take them",
        "from differences, which count as evaluations. Written by `python -m tests.problems.test_minpack`.",
        "",
        "| problem | " + " | ".join(name for name, _ in columns) + " |",
        "| --- |" + " ---: |" * len(columns),
    ]
    counts = [0] * len(columns)
    for system in SYSTEMS:
        cells = []
        for i, (_, run) in enumerate(columns):
            try:
                z, evaluations, products = run(system)
                good = solved(system, z)
            except (ArithmeticError, ValueError):  # some of SciPy's give up with one of these
                good = False
            counts[i] += good
            cells.append((f"{evaluations}, {products}" if products else str(evaluations)) if good else "–")
        lines.append(f"| {system.name} | " + " | ".join(cells) + " |")
    lines.append(f"| solved, of {len(SYSTEMS)} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("minpack.md").write_text(table())
