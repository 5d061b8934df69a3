"""Factors, or any other approximate inverse, that are kept for the matrices that come next."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.solver import LinearSolver, Preconditioner, is_linear_solver
from torchimplicit.parameters import check_count


class Lagged:
    """A preconditioner made of one matrix for those that follow, until it takes too many steps: over Newton steps, and over calls.

    Args:
        solver: what makes it, such as ``linear.SparseLU()``, ``linear.ILU()`` or ``linear.AMG()``.
        patience: it is made anew, of the next matrix, once it has been applied more often than this since a matrix came.

    Keep one for each problem. It makes a solve faster and never changes what counts as solved: products with the true matrix decide.

    Attributes:
        setups: how many were made so far.
    """

    def __init__(self, solver: LinearSolver, patience: int = 30) -> None:
        if not is_linear_solver(solver):
            raise TypeError(
                f"Lagged: solver is {solver!r}; expected one with factorize(operator), such as linear.SparseLU()."
            )
        check_count("Lagged: patience", patience)
        self.solver, self.patience = solver, patience
        self.setups = 0
        self._used = 0
        self._state: Preconditioner | None = None
        self._of: tuple[torch.Size, torch.dtype, torch.device] | None = None

    def __repr__(self) -> str:
        return f"Lagged({self.solver!r}, patience={self.patience})"

    def factorize(self, operator: LinearOperator) -> Preconditioner:
        """The state that is kept, or that of this operator, where there is none for its shape, or it was applied too often."""
        of = operator.shape, operator.dtype, operator.device
        if self._state is None or self._of != of or self._used > self.patience:
            self._state, self._of = self.solver.factorize(operator), of
            self.setups += 1
        self._used = 0
        return _Counting(self, self._state)

    def _applied(self) -> None:
        self._used += 1


class _Counting:
    def __init__(self, of: Lagged, state: Preconditioner) -> None:
        self._of, self._state = of, state

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        self._of._applied()
        return self._state.solve(b, adjoint)
