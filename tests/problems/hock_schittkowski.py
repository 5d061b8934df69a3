"""Method × problem: the published minima of Hock and Schittkowski, from the standard starts, beside the methods of others.

``python -m tests.problems.hock_schittkowski`` prints the table and writes it, ``hock_schittkowski.md``: SciPy's methods, and Ipopt and
POUNCE where they are installed, as in the environment of the benchmarks. With names of problems after it, it only prints their rows.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import torchimplicit as ti
from tests.problem_sets import hock_schittkowski_larger  # noqa: F401  (which adds its own)
from tests.problem_sets.hock_schittkowski import PROGRAMS, Program

D = torch.float64
SCIPY = ["SLSQP", "trust-constr"]
IPOPT = {"Ipopt": "cyipopt", "POUNCE": "pounce"}  # POUNCE's interface is that of cyipopt


def solved(program: Program, theta: Tensor | None = None, start: Tensor | None = None, **options: Any) -> ti.Solution:
    """The solution with the objective φ + θ₀ wᵀz, equalities g = θ₁ and inequalities g ≥ θ₂."""
    theta = torch.zeros(3, dtype=D) if theta is None else theta
    w = torch.sin(torch.arange(1.0, program.n + 1, dtype=D))
    equal, at_least = program.equal, program.at_least
    constraints = ti.Constraints(
        equal=None if equal is None else lambda z, theta: equal(z) - theta[1],
        at_most=None if at_least is None else lambda z, theta: theta[2] - at_least(z),
    )
    bounds = None if program.lower is None and program.upper is None else (program.lower, program.upper)
    return ti.minimize(
        lambda z, theta: program.objective(z) + theta[0] * (w * z).sum(),
        program.start if start is None else start,
        (theta,),
        constraints=constraints,
        bounds=bounds,
        on_failure="ignore",
        **options,
    )


def reached(program: Program, z: Tensor) -> bool:
    """Whether z has a published minimal value, to five digits, and meets the constraints to 1e-6 of their own size there."""
    value = float(program.objective(z))
    violation = torch.cat([*([] if (c := program.equal) is None else [c(z).abs()]), torch.zeros(1, dtype=D)]).max()
    if (h := program.at_least) is not None:
        violation = violation.maximum((-h(z)).max())
    size = max(1.0, abs(value))
    return any(abs(value - least) <= 1e-5 * size for least in program.minima) and float(violation) < 1e-6 * size


def by_scipy(program: Program, method: str) -> tuple[Tensor, int]:
    """What a method of SciPy finds with exact first derivatives (and the Hessian of the objective), and its evaluations of φ."""
    import numpy as np
    from scipy.optimize import Bounds, NonlinearConstraint, minimize

    def array(f: Any) -> Any:
        return lambda z: f(torch.as_tensor(np.asarray(z, dtype=float)).clone()).numpy()

    constraints: list[Any] = []
    for kind, c in (("eq", program.equal), ("ineq", program.at_least)):
        if c is None:
            continue
        jacobian = array(torch.func.jacrev(c))
        if method == "SLSQP":
            constraints.append({"type": kind, "fun": array(c), "jac": jacobian})
        else:
            constraints.append(NonlinearConstraint(array(c), 0, 0 if kind == "eq" else np.inf, jac=jacobian))
    n = program.n
    low = np.full(n, -np.inf) if program.lower is None else program.lower.numpy()
    high = np.full(n, np.inf) if program.upper is None else program.upper.numpy()
    gradient = array(torch.func.grad(program.objective))
    options = {"maxiter": 1000, "ftol": 1e-12} if method == "SLSQP" else {"maxiter": 400, "gtol": 1e-8, "xtol": 1e-10}
    second = {} if method == "SLSQP" else {"hess": array(torch.func.hessian(program.objective))}
    found = minimize(
        lambda z: float(program.objective(torch.as_tensor(z))), np.clip(program.start.numpy(), low, high), jac=gradient,
        method=method, bounds=Bounds(low, high), constraints=constraints, options=options, **second,
    )  # fmt: skip
    return torch.from_numpy(found.x), int(found.nfev)


def by_ipopt(program: Program, module: str) -> tuple[Tensor, int]:
    """What Ipopt, or POUNCE, finds with exact first and second derivatives, and its evaluations of φ."""
    import numpy as np

    def both(z: Tensor) -> Tensor:
        parts = [c(z) for c in (program.equal, program.at_least) if c is not None]
        return torch.cat(parts) if parts else z[:0]

    def array(f: Any, *z: Any) -> Any:
        return f(*(torch.as_tensor(np.array(part, dtype=float)) for part in z)).numpy()

    n, m = program.n, len(both(program.start))
    equalities = 0 if program.equal is None else len(program.equal(program.start))
    rows, columns = np.tril_indices(n)
    count = 0

    def lagrangian(z: Tensor, multipliers: Tensor, factor: Tensor) -> Tensor:
        return factor * program.objective(z) + (multipliers * both(z)).sum()

    class Posed:
        def objective(self, z: Any) -> float:
            nonlocal count
            count += 1
            return float(array(program.objective, z))

        def gradient(self, z: Any) -> Any:
            return array(torch.func.grad(program.objective), z)

        def constraints(self, z: Any) -> Any:
            return array(both, z)

        def jacobian(self, z: Any) -> Any:
            return array(torch.func.jacrev(both), z).ravel()

        def hessianstructure(self) -> Any:
            return rows, columns

        def hessian(self, z: Any, multipliers: Any, factor: float) -> Any:
            return array(torch.func.hessian(lagrangian), z, multipliers, factor)[rows, columns]

    low = np.full(n, -np.inf) if program.lower is None else program.lower.numpy()
    high = np.full(n, np.inf) if program.upper is None else program.upper.numpy()
    problem = importlib.import_module(module).Problem(
        n=n,
        m=m,
        problem_obj=Posed(),
        lb=low,
        ub=high,
        cl=np.zeros(m),
        cu=np.where(np.arange(m) < equalities, 0, np.inf),
    )
    for name, value in (("print_level", 0), ("sb", "yes"), ("tol", 1e-8), ("max_iter", 1000)):
        problem.add_option(name, value)
    z, _ = problem.solve(program.start.numpy().copy())
    return torch.as_tensor(np.asarray(z)), count


def table(programs: list[Program]) -> str:
    """In each cell the evaluations of the objective; a dash where no published minimum was reached."""
    others = {f"SciPy {method}": (by_scipy, method) for method in SCIPY}
    others.update({name: (by_ipopt, module) for name, module in IPOPT.items() if importlib.util.find_spec(module)})
    lines = [
        "# Minima of Hock and Schittkowski under constraints",
        "",
        "Evaluations until a published minimum was reached to five digits with the constraints met to 1e-6; – where it was not. Ours",
        "must also say that it converged (default rtol); half of its evaluations are with first and second derivatives. SciPy's have",
        "exact first derivatives, need not say that they converged, and trust-constr has the Hessian of the objective and at most 400",
        "iterations; Ipopt and POUNCE have exact first and second derivatives, a tolerance of 1e-8 and at most 1,000 iterations.",
        "Written by `python -m tests.problems.hock_schittkowski`, with a column for what is installed.",
        "",
        "| problem | ti.minimize | " + " | ".join(others) + " |",
        "| --- |" + " ---: |" * (1 + len(others)),
    ]
    counts = [0] * (1 + len(others))
    for program in programs:
        z, info = solved(program)
        results = [(bool(info.converged) and reached(program, z), int(info.evaluations))]
        for find, method in others.values():
            found, evaluations = find(program, method)
            results.append((reached(program, found), evaluations))
        counts = [count + good for count, (good, _) in zip(counts, results, strict=True)]
        lines.append(f"| {program.name} | " + " | ".join(str(n) if good else "–" for good, n in results) + " |")
    lines.append(f"| reached, of {len(programs)} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    if asked := sys.argv[1:]:
        print(table([program for program in PROGRAMS if program.name in asked]), end="")
    else:
        text = table(PROGRAMS)
        Path(__file__).with_suffix(".md").write_text(text)
        print(text, end="")
