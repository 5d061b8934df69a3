"""Method × problem: the published minima of Moré, Garbow and Hillstrom, from the standard starts, as sums of squares.

``python -m tests.problems.test_mgh_least_squares`` writes the table with SciPy's methods beside ours, ``mgh_least_squares.md``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import torchimplicit as ti
from tests.problem_sets.mgh import PROBLEMS, LeastSquares
from tests.problems.test_mgh_minima import reached

METHODS = {
    "auto": None,
    "geodesic": ti.solvers.LevenbergMarquardt(geodesic=True),
    "gauss_newton": "gauss_newton",
    "dogleg": "dogleg",
}
SCIPY = ["lm", "trf", "dogbox"]

# Gauss–Newton has nothing but the length of its step to shorten: from where J is (nearly) singular, or r large and bent, it creeps.
# Geodesic steps lead to a saddle point of Biggs' function, which is said.
FAILURES: dict[str, set[str]] = {
    "auto": set(),
    "geodesic": {"18 Biggs EXP6"},
    "gauss_newton": {
        "2 Freudenstein and Roth",
        "6 Jennrich and Sampson",
        "11 Gulf",
        "16 Brown and Dennis",
        "18 Biggs EXP6",
        "24 penalty II 4",
        "24 penalty II 10",
        "35 Chebyquad 8",
        "35 Chebyquad 10",
    },
    "dogleg": set(),
}

# Whether the minimum is reached differs between processors, which add in another order.
BY_ROUNDING = {("dogleg", "18 Biggs EXP6")}


def solved(problem: LeastSquares, method: str) -> tuple[float, bool, int]:
    """The sum of squares that was found, whether it converged, and the evaluations it took."""
    z, info = ti.least_squares(problem.residuals, problem.start, solver=METHODS[method], on_failure="ignore")
    return float(problem.residuals(z).square().sum()), bool(info.converged), int(info.evaluations)


@pytest.mark.sampled(23)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
@pytest.mark.parametrize("method", METHODS)
def test_the_published_minimum_is_reached_or_the_failure_is_expected(method: str, problem: LeastSquares) -> None:
    value, converged, _ = solved(problem, method)
    if (method, problem.name) in BY_ROUNDING:
        assert value < float(problem.residuals(problem.start).square().sum())
    else:
        assert (converged and reached(problem, value)) == (problem.name not in FAILURES[method])


def by_scipy(problem: LeastSquares, method: str) -> tuple[float, bool, int]:
    """The same of a method of SciPy, with the exact Jacobian and tight tolerances."""
    from scipy.optimize import least_squares

    jacobian = torch.func.jacrev(problem.residuals)
    found = least_squares(
        lambda z: problem.residuals(torch.as_tensor(z)).numpy(),
        problem.start.numpy(),
        jac=lambda z: jacobian(torch.as_tensor(z)).numpy(),
        method=method,
        xtol=1e-12,
        ftol=1e-12,
        gtol=1e-12,
        max_nfev=2000,
    )
    return 2 * float(found.cost), bool(found.success), int(found.nfev)


def table() -> str:
    """In each cell the evaluations; a dash where no published minimum was reached."""
    columns = [(name, lambda p, name=name: solved(p, name)) for name in METHODS]
    columns += [(f"SciPy {name}", lambda p, name=name: by_scipy(p, name)) for name in SCIPY]
    lines = [
        "# Least squares of Moré, Garbow and Hillstrom",
        "",
        "Evaluations until the published minimum was reached to six digits, with a status of convergence; – where it was not.",
        "Written by `python -m tests.problems.test_mgh_least_squares`.",
        "",
        "| problem | " + " | ".join(name for name, _ in columns) + " |",
        "| --- |" + " ---: |" * len(columns),
    ]
    counts = [0] * len(columns)
    for problem in PROBLEMS:
        cells = []
        for i, (_, run) in enumerate(columns):
            try:
                value, converged, evaluations = run(problem)
            except ValueError:  # MINPACK takes no fewer equations than unknowns
                value, converged, evaluations = torch.nan, False, 0
            good = converged and reached(problem, value)
            counts[i] += good
            cells.append(str(evaluations) if good else "–")
        lines.append(f"| {problem.name} | " + " | ".join(cells) + " |")
    lines.append(f"| reached, of {len(PROBLEMS)} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("mgh_least_squares.md").write_text(table())
