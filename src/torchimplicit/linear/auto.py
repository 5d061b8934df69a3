"""The choice of a linear solver, made from what is known of the operator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished, inside_functorch, tracing
from torchimplicit.linear.bicgstab import BiCGStab
from torchimplicit.linear.cg import CG
from torchimplicit.linear.cholesky import Cholesky
from torchimplicit.linear.factors import Factors, square
from torchimplicit.linear.gmres import GMRES
from torchimplicit.linear.iteration import IterativeState, LinearResult, Preconditioner
from torchimplicit.linear.lu import LU
from torchimplicit.linear.operators import Diagonal, LinearOperator
from torchimplicit.linear.richardson import Richardson
from torchimplicit.linear.vectors import fit


@dataclass(frozen=True)
class Auto:
    """A documented rule, tried in this order:

    1. `Diagonal`: division.
    2. Entries at hand (`operator.explicit`), or n <= dense_limit: Cholesky if A is positive definite, with LU for the
       systems in which that fails; else LU.
    3. Otherwise, matrix-free: CG if A is positive definite, else GMRES.
    4. Systems that 3 did not solve: LU if n <= fallback_limit, else BiCGStab. Solved systems keep their solution.

    Inside a function transform nothing may depend on success, so the second choices of 2 and 4 are always computed
    there, and used only where they are needed. In a graph there is no 4.

    Attributes:
        dense_limit: largest n for which a matrix-free operator is made dense (n products) without trying it first.
        fallback_limit: largest n for which it is made dense after an iterative solver has failed.
        restart: of GMRES.
        max_steps: limit of steps of each iterative solver; None means 2 n + 20.
        preconditioner: for the iterative solvers.
    """

    dense_limit: int = 64
    fallback_limit: int = 1024
    restart: int = 32
    max_steps: int | None = None
    preconditioner: Any = None

    def factorize(self, operator: LinearOperator) -> AutoState:
        """Choose, and factorise if the choice is a direct solver.

        Raises:
            ValueError: the operator is not square.
            TypeError: the preconditioner has neither `solve` nor `factorize`.
        """
        return AutoState(self, square(operator, "Auto"))


class AutoState:
    """The chosen solver bound to an operator.

    Attributes:
        choice: what solves: "diagonal", "Cholesky", "LU", "CG" or "GMRES".
        direct: the state of a direct choice, else None.
    """

    def __init__(self, solver: Auto, operator: LinearOperator) -> None:
        self.solver = solver
        self.operator = operator
        self.direct: Preconditioner | None = None
        self.iterative: IterativeState | None = None
        if isinstance(operator, Diagonal):
            self.choice, self.direct = "diagonal", Division(operator.d)
        elif operator.explicit or operator.shape[-1] <= solver.dense_limit:
            if operator.positive_definite:
                self.choice, self.direct = "Cholesky", cholesky_or_lu(operator)
            else:
                self.choice, self.direct = "LU", LU().factorize(operator)
        else:
            limits = {"max_steps": solver.max_steps, "preconditioner": solver.preconditioner}
            if operator.positive_definite:
                self.choice, self.iterative = "CG", CG(**limits).factorize(operator)
            else:
                self.choice, self.iterative = "GMRES", GMRES(restart=solver.restart, **limits).factorize(operator)

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """x with A x = b or Aᴴ x = b, (*lead, *batch_shape, n): directly, or to default tolerance."""
        return self.iterate(b, adjoint).x if self.direct is None else self.direct.solve(b, adjoint)

    def iterate(
        self,
        b: Tensor,
        adjoint: bool = False,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        atol: float | None = None,
        max_steps: int | None = None,
    ) -> LinearResult:
        """The solution with its true residual, as for the iterative solvers. A direct choice is refined by the same
        factors where its first answer misses the tolerance.
        """
        state = self.iterative or self._refined(self.direct)
        first = state.iterate(b, adjoint, x0=x0, rtol=rtol, atol=atol, max_steps=max_steps)
        if self.direct is not None or tracing() or finished(first.converged):
            return first
        second = self._fallback().iterate(b, adjoint, rtol=rtol, atol=atol, max_steps=max_steps)
        return better_of(first, second)

    def _refined(self, factors: Preconditioner | None) -> IterativeState:
        return Richardson(preconditioner=factors).factorize(self.operator)

    def _fallback(self) -> IterativeState:
        solver = self.solver
        if self.operator.shape[-1] <= solver.fallback_limit:
            return self._refined(LU().factorize(self.operator))
        limits = {"max_steps": solver.max_steps, "preconditioner": solver.preconditioner}
        return BiCGStab(**limits).factorize(self.operator)


class Division:
    """The state of a diagonal system."""

    def __init__(self, d: Tensor) -> None:
        self.d = d

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """b / d, or b / d̄ for the adjoint."""
        b = fit(b, self.d.shape[:-1], self.d.shape[-1], self.d.dtype, name="b")
        return b / (self.d.conj() if adjoint else self.d)

    @property
    def singular(self) -> Tensor:
        """Whether a system has an entry whose inverse is not finite, or that is not finite itself: bool (*batch_shape)."""
        size = self.d.abs()
        if size.numel() and not inside_functorch():
            smallest, largest = (float(end) for end in size.aminmax())
            # A number that is not subnormal has a finite inverse.
            if torch.finfo(size.dtype).tiny <= smallest and largest < math.inf:
                return torch.zeros(size.shape[:-1], dtype=torch.bool, device=size.device)
        regular = (1 / size < torch.inf) & (size < torch.inf)
        return ~(regular.squeeze(-1) if regular.shape[-1] == 1 else regular.all(-1))


class CholeskyOrLU:
    """Cholesky factors, and LU factors for the systems that have none."""

    def __init__(self, cholesky: Factors, lu: Factors) -> None:
        self.cholesky = cholesky
        self.lu = lu

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        failed = self.cholesky.singular.unsqueeze(-1)
        return torch.where(failed, self.lu.solve(b, adjoint), self.cholesky.solve(b, adjoint))


def cholesky_or_lu(operator: LinearOperator) -> Preconditioner:
    cholesky = Cholesky().factorize(operator)
    if finished(~cholesky.singular):
        return cholesky
    return CholeskyOrLU(cholesky, LU().factorize(operator))


def better_of(first: LinearResult, second: LinearResult) -> LinearResult:
    """Per system the first result, unless the second has the smaller residual and the first did not converge."""
    switch = ~first.converged & ((second.residual_norm < first.residual_norm) | first.residual_norm.isnan())
    return LinearResult(
        torch.where(switch.unsqueeze(-1), second.x, first.x),
        torch.where(switch, second.residual_norm, first.residual_norm),
        first.steps + torch.where(first.converged, 0, second.steps),
        torch.where(switch, second.converged, first.converged),
        torch.where(switch, second.breakdown, first.breakdown),
        torch.where(switch, second.exhausted, first.exhausted),
        first.products + second.products,
    )
