"""Any linear solver bound to an operator: one that does not iterate by itself refines its answer."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from torchimplicit.linear.direct import Direct, Multiplied, never
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.richardson import Richardson
from torchimplicit.linear.solver import Bound, LinearResult, LinearSolver, Preconditioner


def bind(solver: LinearSolver, operator: LinearOperator, refinements: int | None = None) -> Bound:
    """The solver bound to the operator; a direct one refines its answer, in at most so many steps."""
    state = solver.factorize(operator)
    if isinstance(state, Bound):
        return state
    return _Adopted(state) if hasattr(state, "iterate") else _Refined(state, operator, refinements)


class _Adopted(Bound):
    """The state of somebody else's iterative solver."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def iterate(self, b: Tensor, adjoint: bool = False, **options: Any) -> LinearResult:
        result: LinearResult = self._state.iterate(b, adjoint, **options)
        return result


class _Refined(Bound):
    def __init__(self, state: Preconditioner, operator: LinearOperator, refinements: int | None) -> None:
        self.direct = _judging(state, operator)
        self._steps = Richardson(preconditioner=state, max_steps=refinements).factorize(operator)

    def iterate(self, b: Tensor, adjoint: bool = False, **options: Any) -> LinearResult:
        return self._steps.iterate(b, adjoint, **options)


def _judging(state: Preconditioner, operator: LinearOperator) -> Direct:
    """The state itself; of somebody else's, which cannot tell whether a matrix is singular, one that says that none is."""
    if hasattr(type(state), "singular"):  # not of the state: a property would compute it
        return cast(Direct, state)
    return Multiplied(state.solve, never(operator.batch_shape, operator.device))
