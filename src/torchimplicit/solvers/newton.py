"""Newton's method with a dense Jacobian per system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.linear import LU
from torchimplicit.linear.factors import DirectSolver
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.shortest import ShortestInverse, invert
from torchimplicit.linear.solver import Left
from torchimplicit.linear.vectors import unpatterned
from torchimplicit.norms import rms
from torchimplicit.parameters import check_count, check_positive
from torchimplicit.solvers.backtracking import Backtracking, SearchState
from torchimplicit.solvers.equations import Equations, Estimate
from torchimplicit.solvers.method import Method


class NewtonState(NamedTuple):
    """What the next step needs.

    jacobian : at z, linearised and not yet factorised; None where the step uses the factors again.
    factors : of the latest Jacobian that was factorised.
    age : the steps taken with them.
    search : the memory of the line search, if there is one.
    ahead : the factors of the Jacobian at z, which the next step will take, where the latest ones say too little of the error.
    """

    jacobian: Jacobian | None
    factors: ShortestInverse | None
    age: int
    search: SearchState | None
    ahead: ShortestInverse | None = None


class NewtonMemory(NamedTuple):
    """The part of a state that is no graph."""

    factors: ShortestInverse | None
    age: int
    search: SearchState | None


PLAIN_LU = LU(equilibrate=False)


def check_direct(linear_solver: object, name: str) -> None:
    """Raise TypeError unless the linear solver is one whose factors can be handed on."""
    if isinstance(linear_solver, type) or not hasattr(linear_solver, "from_tensors"):
        raise TypeError(
            f"{name} needs a direct solver object of torchimplicit.linear, such as LU(); got {linear_solver!r}. "
            f"For an iterative one use NewtonKrylov."
        )


def kept(factors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The tensors of factors, if they are worth keeping for the backward: a number is divided by as soon as it is known."""
    return factors if factors[0].shape[-1] > 1 else ()


def inverse_at(equations: Equations, z: Tensor, jacobian: Jacobian, linear_solver: DirectSolver) -> ShortestInverse:
    """Of the Jacobian at z, with which Newton's step is the shortest where a whole line of z solves the equations."""

    def again() -> Tensor | None:
        size = torch.where((size := rms(z)) > 0, size, 1).unsqueeze(-1)
        size = torch.where(z != 0, z.abs(), size)  # a number much smaller than the others would be another one
        beside = z + torch.finfo(z.dtype).eps ** 0.5 * size * unpatterned(z)
        there = equations.attempt(equations.jacobian, beside)
        return None if there is None else there.to_dense()

    return invert(linear_solver, jacobian.to_dense(), jacobian.value, z, again)


@dataclass(frozen=True)
class Newton(Method):
    """z ← z − damping · J(z)⁻¹ g(z), with J (n × n for each system) from one batched sweep and factorised.

    The factors of the last step stay behind for the backward pass. One evaluation of g a step: it gives the residual and
    the Jacobian of the next. With ``every`` = m > 1 a Jacobian serves m steps (Shamanskii's method, of order m + 1 for every
    factorisation): cheaper where a Jacobian costs more than a few evaluations. With a ``line_search`` a step that does not
    bring the residual down is shortened (:class:`Backtracking`). Where a whole line of z solves the equations (a gauge) the step is
    the shortest of several, so that z stays where it was along that line.
    Source: Kelley, Iterative Methods for Linear and Nonlinear Equations (1995), sections 5.4.3 and 8.2.
    """

    damping: float = 1.0
    every: int = 1
    line_search: Backtracking | None = None
    linear_solver: DirectSolver = None  # type: ignore[assignment]  # LU without scaling
    max_steps: ClassVar[int] = 50
    patience: ClassVar[int] = 10
    in_graph: ClassVar[bool] = True
    inverse_is_earlier: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.linear_solver:  # a default that torch.compile can read
            object.__setattr__(self, "linear_solver", PLAIN_LU)
        check_direct(self.linear_solver, "Newton")
        check_count("Newton: every", self.every)
        check_positive("Newton: damping", self.damping)

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, NewtonState]:
        jacobian = equations.jacobian(z)
        search = None if self.line_search is None else self.line_search.start(jacobian.value)
        return jacobian.value, NewtonState(jacobian, None, 0, search)

    def step(
        self, equations: Equations, z: Tensor, r: Tensor, state: NewtonState
    ) -> tuple[Tensor, Tensor, NewtonState]:
        factors, age, search = state.factors, state.age + 1, state.search
        if state.jacobian is not None or factors is None:
            assert state.jacobian is not None
            factors, age = state.ahead or inverse_at(equations, z, state.jacobian, self.linear_solver), 1
        step = factors.solve(self.linear_solver, r)
        if self.damping != 1:
            step = self.damping * step
        again = age < self.every  # these factors serve the next step too
        if self.line_search is not None and search is not None:
            z, jacobian, search = self.line_search.along(equations, z, -step, search)
        else:
            z = z - step
            if again:
                return z, equations.residual(z), NewtonState(None, factors, age, None)
            jacobian = equations.jacobian(z)
        if again:
            return z, jacobian.value, NewtonState(None, factors, age, search)
        ahead = inverse_at(equations, z, jacobian, self.linear_solver) if factors.some_suspicious else None
        return z, jacobian.value, NewtonState(jacobian, factors, age, search, ahead)

    def estimate(self, z: Tensor, r: Tensor, state: NewtonState) -> Estimate | None:
        """The simplified correction: Newton's at z with the factors of the last step. Where those are of rows or columns of very
        different sizes, one step can change them altogether, and it is Newton's with the factors at z.

        Source: Deuflhard, Newton Methods for Nonlinear Problems (2011), section 2.1: no regular factor of g changes it.
        """
        factors = state.ahead or state.factors
        return None if factors is None else Estimate(factors.solve(self.linear_solver, r), 0.0)

    def restart(self, equations: Equations, z: Tensor, memory: NewtonMemory) -> tuple[Tensor, NewtonState]:
        """The residual and the state at z."""
        if memory.factors is None:
            r, state = self.init(equations, z)
            return r, state._replace(search=memory.search)
        return equations.residual(z), NewtonState(None, memory.factors, memory.age, memory.search)

    def remembered(self, state: NewtonState) -> NewtonMemory:
        """What a restart needs beside z: the factors, if they will be used again, and the memory of the line search."""
        if state.jacobian is not None:
            return NewtonMemory(None, 0, state.search)
        return NewtonMemory(state.factors, state.age, state.search)

    def inverse(self, state: NewtonState) -> tuple[Tensor, ...]:
        """The tensors of the factors at z, where there are some, or of the last ones, to serve (transposed) in the backward; none
        after 0 steps."""
        factors = state.ahead or state.factors
        return () if factors is None else kept(factors.factors)

    def from_tensors(self, tensors: Sequence[Tensor]) -> Left:
        """The inverse again."""
        return self.linear_solver.from_tensors(tensors)
