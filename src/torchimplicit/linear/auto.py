"""The choice of a linear solver, made from what is known of the operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished, tracing
from torchimplicit.linear.bands import banded
from torchimplicit.linear.bicgstab import BiCGStab
from torchimplicit.linear.cg import CG
from torchimplicit.linear.cholesky_or_lu import cholesky_or_lu
from torchimplicit.linear.direct import Direct
from torchimplicit.linear.factors import square
from torchimplicit.linear.gmres import GMRES
from torchimplicit.linear.iteration import IterativeSolver, IterativeState
from torchimplicit.linear.jacobian import memory_of
from torchimplicit.linear.large import Large
from torchimplicit.linear.lu import LU
from torchimplicit.linear.minres import MINRES
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.preconditioning import Preconditioning, check_preconditioner
from torchimplicit.linear.richardson import Richardson
from torchimplicit.linear.solver import Bound, LinearResult
from torchimplicit.parameters import check_steps

NARROW = 64  # diagonals of a band within which elimination pays


@dataclass(frozen=True)
class Auto:
    """A documented rule, tried in this order:

    1. The direct solve that this kind of matrix has (`operator.direct()`): division by a diagonal, elimination within a band,
       block by block, by factor of a product, ...; LU for dense entries, or Cholesky if A is positive definite, with LU for
       the systems in which that fails.
    2. Of what has none: :class:`Large`, if A is a Jacobian and something is known of those like it (`A.memory`); elimination within the
       band, if that is known to be narrow; the same LU or Cholesky, if n <= dense_limit.
    3. Otherwise, by products alone: CG if A is positive definite, MINRES if it is symmetric (a preconditioner may
       not be definite), else GMRES.
    4. Systems that 3 or `Large` did not solve, or a direct solve that does not serve every regular matrix: LU if n <= fallback_limit,
       else BiCGStab. Solved systems keep their solution.

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
    preconditioner: Preconditioning = None

    def __post_init__(self) -> None:
        check_preconditioner(self.preconditioner)
        check_steps(self.max_steps)

    def factorize(self, operator: LinearOperator) -> AutoState:
        """Choose, and factorise if the choice is a direct solver.

        Raises:
            ValueError: the operator is not square.
            TypeError: the preconditioner is an operator without a direct solve, or does not fit this operator.
        """
        return AutoState(self, square(operator, "Auto"))


def _direct(operator: LinearOperator, dense_limit: int) -> Direct | None:
    """The state of the direct solve that fits the operator; None: there is none that pays."""
    own = operator.direct()
    if own is not None or memory_of(operator) is not None:
        return own
    structure, n = operator.structure, operator.shape[-1]
    if structure.lower + structure.upper < min(NARROW, n / 2):
        return banded(operator).direct()
    if n > dense_limit:
        return None
    return cholesky_or_lu(operator) if operator.positive_definite else LU().factorize(operator)


class AutoState(Bound):
    """The chosen solver bound to an operator.

    Attributes:
        choice: what solves: "large", "CG", "MINRES", "GMRES", or the title of a direct solve, such as "diagonal", "Cholesky" or "LU".
        direct: the state of a direct choice, else None.
    """

    def __init__(self, solver: Auto, operator: LinearOperator) -> None:
        self.solver = solver
        self.operator = operator
        self.direct = _direct(operator, solver.dense_limit)
        self.iterative: Bound | None = None
        if self.direct is not None:
            self.choice = self.direct.title
        elif memory_of(operator) is not None:
            self.choice, self.iterative = "large", Large(restart=solver.restart).factorize(operator)
        else:
            method: Callable[..., IterativeSolver]
            if operator.positive_definite:
                self.choice, method = "CG", CG
            elif operator.symmetric and solver.preconditioner is None:
                self.choice, method = "MINRES", MINRES
            else:
                self.choice, method = "GMRES", partial(GMRES, restart=solver.restart)
            self.iterative = self._by(method)

    def _by(self, method: Callable[..., IterativeSolver]) -> IterativeState:
        limits = {"max_steps": self.solver.max_steps, "preconditioner": self.solver.preconditioner}
        return method(**limits).factorize(self.operator)

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """x with A x = b or Aᴴ x = b, (*lead, *batch_shape, n): directly, or to default tolerance."""
        return self.iterate(b, adjoint).x if self.direct is None else self.direct.solve(b, adjoint)

    def iterate(
        self,
        b: Tensor,
        adjoint: bool = False,
        *,
        x0: Tensor | None = None,
        rtol: float | Tensor | None = None,
        atol: float | None = None,
        max_steps: int | None = None,
    ) -> LinearResult:
        """The solution with its true residual, as for the iterative solvers. A direct choice is refined by the same
        factors where its first answer misses the tolerance.
        """
        state = self.iterative or self._refined(self.direct)
        first = state.iterate(b, adjoint, x0=x0, rtol=rtol, atol=atol, max_steps=max_steps)
        if (self.direct is not None and self.direct.final) or tracing() or finished(first.converged):
            return first
        second = self._fallback().iterate(b, adjoint, rtol=rtol, atol=atol, max_steps=max_steps)
        return better_of(first, second)

    def _refined(self, factors: Direct | None) -> IterativeState:
        return Richardson(preconditioner=factors).factorize(self.operator)

    def _fallback(self) -> IterativeState:
        if self.operator.shape[-1] <= self.solver.fallback_limit:
            return self._refined(LU().factorize(self.operator))
        return self._by(BiCGStab)


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
