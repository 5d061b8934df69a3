"""What a linear solver is, one bound to an operator, what it iterates to, and what a forward solve leaves of one for the backward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from inspect import signature
from typing import NamedTuple, Protocol, TypeGuard

import torch
from torch import Tensor

from torchimplicit.linear.direct import Direct
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.status import Status


class LinearResult(NamedTuple):
    """An iterative solution. Per system means: of shape (*lead, *batch_shape).

    Attributes:
        x: the best solution seen, (*lead, *batch_shape, n): that of the smallest residual, or, where the step limit ended CG or
            MINRES, the nearest in a measure of their own.
        residual_norm: ‖b − A x‖ per system, evaluated and not taken from a recurrence, but for that of CG after a
            single step, or to a tolerance that rounding is far below.
        steps: steps taken per system (int64).
        converged: residual_norm <= atol + rtol ‖b‖, per system.
        breakdown: per system, the method could not go on (a zero divisor, a non-finite number) and did not converge.
        exhausted: per system, the step limit ended it before it converged.
        products: products with A or Aᴴ of the whole batch.
    """

    x: Tensor
    residual_norm: Tensor
    steps: Tensor
    converged: Tensor
    breakdown: Tensor
    exhausted: Tensor
    products: int


def after(first: LinearResult | None, second: LinearResult) -> LinearResult:
    """The second result, which began where the first ended, with the costs of both."""
    if first is None:
        return second
    return second._replace(steps=first.steps + second.steps, products=first.products + second.products)


def linear_status(result: LinearResult) -> Tensor:
    """How the solution of a linear system ended, per system."""
    status = torch.where(result.exhausted, Status.MAX_STEPS, Status.STAGNATED)
    status = torch.where(result.converged, Status.CONVERGED, status)
    return torch.where(result.residual_norm.isfinite() & result.x.isfinite().all(-1), status, Status.NONFINITE)


class Preconditioner(Protocol):
    """An approximate inverse of A, such as the state of any solver for a nearby matrix."""

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor: ...


class LinearSolver(Protocol):
    """Anything that makes of an operator something with ``solve(b, adjoint)``.

    A state that iterates to a tolerance is a :class:`Bound`, or has its ``iterate``; one that judges whether a matrix is singular is
    a :class:`~torchimplicit.linear.direct.Direct`. Of others :mod:`torchimplicit.linear.binding` makes the one and the other.
    One of the package may be part of a graph of torch.compile where its class says ``in_graph = True``.
    """

    def factorize(self, operator: LinearOperator) -> Preconditioner: ...


def can_solve(preconditioner: object) -> TypeGuard[Preconditioner]:
    """Whether it is an approximate inverse."""
    return hasattr(preconditioner, "solve")


def is_linear_solver(solver: object) -> TypeGuard[LinearSolver]:
    """Whether it is one, and not its class."""
    return not isinstance(solver, type) and hasattr(solver, "factorize")


def written(cls: type) -> str:
    """How an object of the class is made, with what it needs: ``Neumann(terms)``."""
    needed = [name for name, each in signature(cls).parameters.items() if each.default is each.empty]
    return f"{cls.__name__}({', '.join(needed)})"


class Bound(ABC):
    """A solver bound to an operator, which iterates to a tolerance.

    direct : the factors by which it solves; None where it has none.
    preconditioner : the approximate inverse of an iterative one; None where it has none.
    """

    direct: Direct | None = None
    preconditioner: Preconditioner | None = None

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """x with A x = b or Aᴴ x = b, to default tolerance: `iterate(b, adjoint).x`."""
        return self.iterate(b, adjoint).x

    @abstractmethod
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
        """The solution with ‖b − A x‖ <= atol + rtol ‖b‖, from x0."""


class Left(Preconditioner, Protocol):
    """What a forward solve leaves of ∂g/∂z for the backward: its inverse, or nearly so."""

    @property
    def suspicious(self) -> Tensor:
        """Whether the matrix of each system may be singular, (B,)."""
        ...


class Refusing(ABC):
    """One of a forward solve that knows which derivatives do not exist.

    refused : the status of such a derivative of each system, CONVERGED where there is one: (B,).
    """

    refused: Tensor

    @abstractmethod
    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """Its product, or that of its adjoint, with b (*lead, B, n)."""

    @property
    def suspicious(self) -> Tensor:
        """Of none: what is singular is told by ``refused``."""
        return torch.zeros_like(self.refused, dtype=torch.bool)
