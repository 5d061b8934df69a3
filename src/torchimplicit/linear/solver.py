"""What a linear solver is, and one bound to an operator: it iterates to a tolerance, and may hold factors."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from torchimplicit.linear.iteration import LinearResult, Preconditioner
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.richardson import Richardson


class LinearSolver(Protocol):
    """Anything that makes of an operator something with ``solve(b, adjoint)``, and perhaps ``iterate``."""

    def factorize(self, operator: LinearOperator) -> Any: ...


class Bound(Protocol):
    """A solver bound to an operator.

    direct : the factors by which it solves; None where it has none.
    preconditioner : the state of the preconditioner of an iterative one; None where it has none.
    """

    @property
    def direct(self) -> Any: ...

    @property
    def preconditioner(self) -> Any: ...

    def iterate(
        self,
        b: Tensor,
        adjoint: bool = False,
        *,
        rtol: float | None = None,
        atol: float | None = None,
        max_steps: int | None = None,
    ) -> LinearResult: ...


def bind(solver: LinearSolver, operator: LinearOperator, refinements: int | None = None) -> Bound:
    """The solver bound to the operator; a direct one refines its answer, in at most so many steps."""
    state = solver.factorize(operator)
    return _Iterating(state) if hasattr(state, "iterate") else _Refined(state, operator, refinements)


class _Iterating:
    def __init__(self, state: Any) -> None:
        self.iterate = state.iterate
        self._state = state

    @property
    def direct(self) -> Any:
        return getattr(self._state, "direct", None)

    @property
    def preconditioner(self) -> Any:
        return getattr(self._state, "preconditioner", None)


class _Refined:
    preconditioner = None

    def __init__(self, factors: Preconditioner, operator: LinearOperator, refinements: int | None) -> None:
        self.direct = factors
        self.iterate = Richardson(preconditioner=factors, max_steps=refinements).factorize(operator).iterate
