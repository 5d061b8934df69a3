"""Newton's method with a dense Jacobian per system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from torchimplicit.linear import LU
from torchimplicit.linear.factors import DirectSolver, Factors
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.parameters import check_count, check_positive
from torchimplicit.solvers.equations import Equations


class NewtonState(NamedTuple):
    """What the next step needs.

    jacobian : at z, linearised and not yet factorised; None where the step uses the factors again.
    factors : of the latest Jacobian that was factorised.
    age : the steps taken with them.
    """

    jacobian: Jacobian | None
    factors: Factors | None
    age: int


class NewtonMemory(NamedTuple):
    """The part of a state that is no graph."""

    factors: tuple[Tensor, ...]
    age: int


PLAIN_LU = LU(equilibrate=False)


def check_direct(linear_solver: Any, name: str) -> None:
    """Raise TypeError unless the linear solver is one whose factors can be handed on."""
    if isinstance(linear_solver, type) or not hasattr(linear_solver, "from_tensors"):
        raise TypeError(
            f"{name} needs a direct solver object of torchimplicit.linear, such as LU(); got {linear_solver!r}. "
            f"For an iterative one use NewtonKrylov."
        )


def kept(factors: Factors) -> tuple[Tensor, ...]:
    """The tensors of factors that are worth keeping for the backward: a number is divided by as soon as it is known."""
    return factors.tensors if factors.tensors[0].shape[-1] > 1 else ()


@dataclass(frozen=True)
class Newton:
    """z ← z − damping · J(z)⁻¹ g(z), with J (n × n for each system) from one batched sweep and factorised.

    The factors of the last step stay behind for the backward pass. One evaluation of g a step: it gives the residual and
    the Jacobian of the next. With ``every`` = m > 1 a Jacobian serves m steps (Shamanskii's method, of order m + 1 for every
    factorisation): cheaper where a Jacobian costs more than a few evaluations.
    Source: Kelley, Iterative Methods for Linear and Nonlinear Equations (1995), section 5.4.3.
    """

    damping: float = 1.0
    every: int = 1
    linear_solver: DirectSolver = PLAIN_LU
    max_steps: ClassVar[int] = 50
    patience: ClassVar[int] = 10

    def __post_init__(self) -> None:
        check_direct(self.linear_solver, "Newton")
        check_count("Newton: every", self.every)
        check_positive("Newton: damping", self.damping)

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, NewtonState]:
        jacobian = equations.jacobian(z)
        return jacobian.value, NewtonState(jacobian, None, 0)

    def step(
        self, equations: Equations, z: Tensor, r: Tensor, state: NewtonState
    ) -> tuple[Tensor, Tensor, NewtonState]:
        factors, age = state.factors, state.age + 1
        if state.jacobian is not None or factors is None:
            assert state.jacobian is not None
            factors, age = self.linear_solver.factorize(state.jacobian), 1
        step = factors.solve(r)
        z = z - step if self.damping == 1 else z - self.damping * step
        if age < self.every:
            return z, equations.residual(z), NewtonState(None, factors, age)
        jacobian = equations.jacobian(z)
        return z, jacobian.value, NewtonState(jacobian, factors, age)

    def restart(self, equations: Equations, z: Tensor, memory: NewtonMemory | None) -> tuple[Tensor, NewtonState]:
        """The residual and the state at z."""
        if memory is None:
            return self.init(equations, z)
        factors = self.linear_solver.from_tensors(memory.factors)
        return equations.residual(z), NewtonState(None, factors, memory.age)

    def memory(self, state: NewtonState) -> NewtonMemory | None:
        """What a restart needs beside z: the factors, if they will be used again."""
        if state.jacobian is not None or state.factors is None:
            return None
        return NewtonMemory(state.factors.tensors, state.age)

    def inverse(self, state: NewtonState) -> tuple[Tensor, ...]:
        """The tensors of the last factors, to serve (transposed) in the backward; none after 0 steps."""
        return () if state.factors is None else kept(state.factors)

    def from_tensors(self, tensors: Sequence[Tensor]) -> Any:
        """The inverse again."""
        return self.linear_solver.from_tensors(tensors)
