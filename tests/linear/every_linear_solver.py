"""The linear solvers by name, so that a new one is tested wherever it can be asked."""

from __future__ import annotations

from typing import Any

from torchimplicit.linear import SOLVERS
from torchimplicit.linear.iteration import IterativeSolver

# Solvers that do not take just any regular matrix, and why.
PARTICULAR = {
    "Contraction": "it reads values, which transforms hide",
    "Large": "it is for Jacobians; of others it takes CG or GMRES",
    "Neumann": "its series is cut off",
    "Richardson": "without a preconditioner it is for matrices near the identity",
    "SparseCholesky": "it is for sparse matrices",
    "SparseLU": "it is for sparse matrices",
}
SYMMETRIC = ("CG", "Cholesky", "MINRES")  # those that are asked with definite matrices


def every(names: Any, **options: Any) -> dict[str, Any]:
    """One of each, the iterative ones with the options."""
    made = {name: SOLVERS[name] for name in SOLVERS if name in names}
    return {name: cls(**options) if issubclass(cls, IterativeSolver) else cls() for name, cls in made.items()}


ALL = [name for name in SOLVERS if name not in PARTICULAR]
GENERAL = [name for name in ALL if name not in SYMMETRIC]
DEFINITE = [name for name in ALL if name in SYMMETRIC]
ITERATIVE = [name for name in ALL if issubclass(SOLVERS[name], IterativeSolver)]
DIRECT = [name for name in ALL if name not in ITERATIVE]
