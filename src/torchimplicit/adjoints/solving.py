"""How the linear system of a derivative is solved, and what its solution says of the Jacobian and of z*."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from torchimplicit.adjoints.well_posed import ByAdjoint, ByFactors, Diagnosis, LinearSolution, look
from torchimplicit.autograd.transforms import finished, occurs
from torchimplicit.linear import GMRES, LU, Auto, Contraction, LinearResult, Richardson
from torchimplicit.linear.auto import better_of
from torchimplicit.linear.diagonal import Division
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.rounding import solved_by_matrix, solved_to_rounding
from torchimplicit.linear.solver import Bound, LinearSolver, bind
from torchimplicit.status import OnFailure
from torchimplicit.tolerance import Tolerance

T = TypeVar("T", Tensor, float)

REFINEMENTS = 4  # steps in which the inverse of a Jacobian near z* brings the residual down to tolerance
KRYLOV = 32  # steps of GMRES with an inverse that needs more: it is of a Jacobian farther away
ROUGHLY = 0.1  # relative residual of a solution that need only be known roughly


@dataclass(frozen=True)
class LinearSettings:
    """How the linear systems of a derivative are solved, and what is done when that fails.

    forgiving : whether a system that only rounding keeps from its tolerance counts as solved.
    inverse : rebuilds the forward solver's approximate inverse of ∂g/∂z from its tensors.
    inverse_is_earlier : whether that is of the Jacobian at a z that was farther from the root.
    near_identity : whether ∂g/∂z may be the identity less a contraction.
    tolerance : of the forward solve: the error that z may have.
    """

    solver: LinearSolver | None
    rtol: float
    atol: float
    max_steps: int | None
    forgiving: bool
    on_failure: OnFailure
    inverse: Callable[[Sequence[Tensor]], Any]
    inverse_is_earlier: bool
    near_identity: bool
    tolerance: Tolerance

    def limit(self, b: Tensor) -> Tensor:
        """The residual norms (B,) with which A w = b counts as solved."""
        return self.allowed(torch.linalg.vector_norm(b, dim=-1))

    def allowed(self, size: T) -> T:
        """The same, from the norm of b."""
        return self.atol + self.rtol * size


class LinearisedSolver:
    """A x = b, or Aᵀ x = b for the ``adjoint``, by the user's linear solver, or the forward solver's inverse refined to tolerance, or
    the automatic choice."""

    def __init__(self, settings: LinearSettings, operator: Jacobian, inverse: Any, b: Tensor, adjoint: bool) -> None:
        self.settings, self.operator, self.b, self.adjoint = settings, operator, b, adjoint
        self.named = settings.solver
        self.inverse = inverse if self.named is None else None
        self.inverse_is_near = self.inverse is not None  # to the inverse of A
        self.direct: Any = None  # factors of A that were needed

    @property
    def truncated(self) -> bool:
        """Whether the solver is a series that its user has cut off: an approximation, of which nothing is expected."""
        return getattr(self.named, "truncated", False)

    @property
    def small(self) -> bool:
        """Whether A is so small that its factors cost little."""
        return self.operator.shape[-1] <= Auto.dense_limit

    @cached_property
    def state(self) -> Bound:
        """The chosen solver bound to the operator, when it is needed."""
        automatic = Contraction() if self.settings.near_identity else Auto()
        return bind(automatic if self.named is None else self.named, self.operator, REFINEMENTS)

    def solve(self) -> LinearResult:
        """The solution."""
        if self.operator.shape[-1] == 1 and self.named is None:
            return self._divided()
        result = self._refined()
        if self.settings.forgiving and self.small and occurs(~result.converged):
            A = self.operator.to_dense()
            A = A.mT if self.adjoint else A
            rounded = solved_to_rounding(A, self.b, result.x)
            rounded = rounded & solved_by_matrix(A, self.b, result.x, result.residual_norm)
            result = result._replace(converged=result.converged | rounded)
        return result

    def _refined(self) -> LinearResult:
        if self.inverse is None:
            return self._chosen(self.b)
        limits: dict[str, Any] = {"rtol": self.settings.rtol, "atol": self.settings.atol}
        refined = Richardson(preconditioner=self.inverse, max_steps=REFINEMENTS).factorize(self.operator)
        result = refined.iterate(self.b, self.adjoint, **limits)
        if finished(result.converged):
            return result
        self.inverse_is_near = False
        if not self.small:
            krylov = GMRES(preconditioner=self.inverse, restart=KRYLOV, max_steps=KRYLOV).factorize(self.operator)
            result = better_of(result, krylov.iterate(self.b, self.adjoint, x0=result.x.nan_to_num(), **limits))
        return result if finished(result.converged) else better_of(result, self._chosen(self.b))

    def _divided(self) -> LinearResult:
        """The solutions of systems with one unknown. Where there are several, a true product tells whether none influences another."""
        self.direct = division = Division(self.operator.to_dense().squeeze(-1))
        x = division.solve(self.b)
        product = self.operator.apply(x, self.adjoint) if len(x) > 1 else division.d * x
        residual = (self.b - product).abs().squeeze(-1)
        converged = residual <= self.settings.limit(self.b)
        one = torch.ones_like(converged, dtype=torch.int64)
        return LinearResult(x, residual, one, converged, ~converged, torch.zeros_like(converged), 0)

    def _chosen(self, b: Tensor, rtol: float | None = None) -> LinearResult:
        limits: dict[str, Any] = {"atol": self.settings.atol, "max_steps": self.settings.max_steps}
        result = self.state.iterate(b, self.adjoint, rtol=self.settings.rtol if rtol is None else rtol, **limits)
        self.direct = self.direct if self.state.direct is None else self.state.direct
        return result

    def singular(self) -> Tensor | None:
        """Where factors of A say that it is singular, (B,); None: nowhere.

        An iterative solver that happens upon a right-hand side in the range of A sees nothing: up to n = 64, A is factorised for that
        alone. (The automatic choice is direct there, or a contraction, whose own solution would grow.)
        """
        if self.direct is None and not self.truncated:
            if self.inverse is not None and self.inverse_is_near:
                unknown = occurs(self.inverse.suspicious)  # which was of a nearby matrix, and perhaps badly scaled
                if unknown and self.inverse.exact:
                    return self.inverse.singular
            else:
                unknown = self.small and self.named is not None
            if unknown:
                self.direct = LU().factorize(self.operator)
        return getattr(self.direct, "singular", None)

    def look(self, at: LinearSolution, rows: Tensor, gauge: bool) -> Diagnosis | None:
        """What the solution says of z* in ``rows`` (B,), if that is worth a look; nothing of a tangent found iteratively. Beside a
        ``gauge``, it says more than factors do."""
        factors = self.inverse if self.direct is None and self.inverse_is_near else self.direct
        if factors is None or gauge:
            rows = at.doubtful(rows, *at.error)
            if not occurs(rows):
                return None
        limit = Auto.dense_limit if self.inverse is None else Auto.fallback_limit  # of what is in doubt already
        if factors is None and self.operator.shape[-1] <= limit:
            factors = LU().factorize(self.operator)
        if factors is not None:
            return look(at, ByFactors(factors, at), rows)
        return look(at, ByAdjoint(self._again, at), rows) if self.adjoint else None

    def _again(self, b: Tensor) -> Tensor:
        return self._chosen(b, ROUGHLY).x


class Tiled:
    """An inverse of k systems that serves a multiple of k right-hand sides, all rows of the flat batch."""

    def __init__(self, inverse: Any, systems: int) -> None:
        self.inverse, self.systems = inverse, systems

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        if self.systems == b.shape[0]:
            solution: Tensor = self.inverse.solve(b, adjoint)
            return solution
        tiled: Tensor = self.inverse.solve(b.unflatten(0, (-1, self.systems)), adjoint)
        return tiled.flatten(0, 1)

    @property
    def exact(self) -> bool:
        """Whether it is of the very matrix, and not of one nearby."""
        return getattr(self.inverse, "exact", False)

    @property
    def suspicious(self) -> Tensor:
        found: Tensor = self.inverse.suspicious
        return found

    @property
    def singular(self) -> Tensor:
        found: Tensor = self.inverse.singular
        return found
