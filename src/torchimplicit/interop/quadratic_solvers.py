"""The solvers that the package qpsolvers finds, for quadratic programs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from torchimplicit.programs.outside import Answers
from torchimplicit.programs.quadratic import Data

MISSING = "interop.qpsolvers needs the package qpsolvers, and a solver that it knows: pip install 'torchimplicit[qp]'."


def qpsolvers(solver: str, **options: Any) -> QPSolver:
    """A solver that the package ``qpsolvers`` finds, such as "piqp", "proxqp", "clarabel", "osqp" or "highs", for
    :func:`torchimplicit.quadratic_program`.

    It is called for every program of the batch, one after the other. ``options`` are its own (``qpsolvers.solve_problem`` takes them).
    The derivative is ours, and so is the word on whether there is a solution.

    Raises:
        ImportError: qpsolvers is not installed.
        ValueError: qpsolvers does not know the solver, or does not find it installed.

    Example::

        z, info = ti.quadratic_program(Q, p, G, h, solver=ti.interop.qpsolvers("piqp", eps_abs=1e-10))
    """
    found = _package().available_solvers
    if solver not in found:
        raise ValueError(
            f"qpsolvers finds no solver {solver!r} here; it finds {', '.join(found) or 'none'}. Install the solver's own package."
        )
    return QPSolver(solver, options)


@dataclass(frozen=True)
class QPSolver:
    """That solver, by its name."""

    solver: str
    options: dict[str, Any]

    def programs(self, data: Data) -> Answers:
        """One call for each program whose data are numbers."""
        n, m, k, bounds = data.sizes
        z, multipliers = data.p.new_zeros(len(data.p), n), data.p.new_zeros(len(data.p), m + k + bounds)
        solved = torch.zeros(len(data.p), dtype=torch.bool)
        arrays = {name: t.cpu().numpy() for name, t in vars(data).items() if t is not None}
        with warnings.catch_warnings():  # of programs without a solution our statuses tell
            warnings.simplefilter("ignore")
            for i in range(len(z)):
                answer = self._one({name: array[i] for name, array in arrays.items()})
                if answer is not None:
                    z[i], multipliers[i] = (torch.tensor(part, dtype=z.dtype) for part in answer)
                    solved[i] = bool((z[i].sum() + multipliers[i].sum()).isfinite())
        return Answers(z, multipliers, solved.to(z.device))

    def _one(self, data: dict[str, Any]) -> tuple[Any, Any] | None:
        """z and the multipliers of one program; None where there are none."""
        import numpy as np

        package = _package()
        h, b, lower = data["h"], data["b"], data.get("lower")
        there = h < np.inf
        if not all(np.isfinite(data[name]).all() for name in ("Q", "p", "G", "A", "b")) or np.isnan(h).any():
            return None
        Q = (data["Q"] + data["Q"].T) / 2
        inequalities = (data["G"][there], h[there]) if there.any() else (None, None)
        equalities = (data["A"], b) if len(b) else (None, None)
        problem = package.Problem(Q, data["p"], *inequalities, *equalities, lower, data.get("upper"))
        try:
            found = package.solve_problem(problem, self.solver, **self.options)
        except package.exceptions.SolverError:
            return None
        if not found.found or found.x is None:
            return None
        inequality = np.zeros(len(h))
        inequality[there] = found.z if there.any() else 0
        of_bounds = [] if lower is None else [found.z_box]
        parts = [inequality, found.y if len(b) else np.zeros(0), *of_bounds]
        return found.x, np.concatenate(parts)


def _package() -> Any:
    try:
        import_module("qpsolvers.exceptions")
        return import_module("qpsolvers")
    except ImportError as error:
        raise ImportError(MISSING) from error
