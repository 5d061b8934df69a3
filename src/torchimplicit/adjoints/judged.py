"""What the solution of the linear system of a derivative, and the factors that it took, say of the Jacobian and of z*."""

from __future__ import annotations

from torch import Tensor

from torchimplicit.adjoints.at_solution import ByAdjoint, ByFactors, Diagnosis, LinearSolution, diagnosed
from torchimplicit.adjoints.linearised_solver import LinearisedSolver
from torchimplicit.autograd.transforms import occurs
from torchimplicit.linear import LU, Auto
from torchimplicit.linear.factors import Factors


def singular_systems(solver: LinearisedSolver) -> Tensor | None:
    """Where factors of A say that it is singular, (B,); None: nowhere.

    An iterative solver that happens upon a right-hand side in the range of A sees nothing: up to n = 64, A is factorised for that
    alone. (The automatic choice is direct there, or a contraction, whose own solution would grow.)
    """
    if solver.direct is None and not solver.truncated:
        inverse = solver.inverse if solver.inverse_is_near else None
        if inverse is None:
            unknown = solver.small and solver.named is not None
        elif isinstance(inverse, Factors):
            unknown = inverse.some_suspicious
        else:  # it was of a nearby matrix, and perhaps badly scaled, or tells for itself
            unknown = occurs(inverse.suspicious)
            singular = inverse.singular if unknown else None
            if singular is not None:
                return singular
        if unknown:
            solver.direct = LU().factorize(solver.operator)
    return None if solver.direct is None else solver.direct.singular


def look(solver: LinearisedSolver, at: LinearSolution, rows: Tensor, gauge: bool) -> Diagnosis | None:
    """What the solution says of z* in ``rows`` (B,), if that is worth a look; nothing of a tangent found iteratively. Beside a
    ``gauge``, it says more than factors do."""
    factors = solver.inverse if solver.direct is None and solver.inverse_is_near else solver.direct
    if factors is None or gauge:
        doubtful = at.doubtful(rows, *at.error)
        if doubtful is None:
            return None
        rows = doubtful
    limit = Auto.dense_limit if solver.inverse is None else Auto.fallback_limit  # of what is in doubt already
    if factors is None and solver.operator.shape[-1] <= limit:
        factors = LU().factorize(solver.operator)
    if factors is not None:
        return diagnosed(at, ByFactors(factors, at), rows, solver.forgiven)
    return diagnosed(at, ByAdjoint(solver.roughly, at), rows) if solver.adjoint else None
