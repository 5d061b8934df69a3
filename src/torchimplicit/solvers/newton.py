"""Newton's method with a dense Jacobian per system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from torchimplicit.linear import LU
from torchimplicit.linear.factors import DirectSolver, Factors
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.solvers.loop import Equations


class NewtonState(NamedTuple):
    """The Jacobian at z, linearised and not yet factorised, and the factors of the step before."""

    jacobian: Jacobian
    factors: Factors | None


PLAIN_LU = LU(equilibrate=False)


def check_direct(linear_solver: Any, name: str) -> None:
    """Raise TypeError unless the linear solver is one whose factors can be handed on."""
    if isinstance(linear_solver, type) or not hasattr(linear_solver, "from_tensors"):
        raise TypeError(
            f"{name} needs a direct solver object of torchimplicit.linear, such as LU(); got {linear_solver!r}. "
            f"For an iterative one use NewtonKrylov."
        )


@dataclass(frozen=True)
class Newton:
    """z ← z − damping · J(z)⁻¹ g(z), with J (n × n for each system) from one batched sweep and factorised.

    The factors of the last step stay behind for the backward pass. One evaluation of g a step: it gives the residual and
    the Jacobian of the next.
    """

    damping: float = 1.0
    linear_solver: DirectSolver = PLAIN_LU
    max_steps: ClassVar[int] = 50
    patience: ClassVar[int] = 10

    def __post_init__(self) -> None:
        check_direct(self.linear_solver, "Newton")

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, NewtonState]:
        jacobian = equations.jacobian(z)
        return jacobian.value, NewtonState(jacobian, None)

    def step(
        self, equations: Equations, z: Tensor, r: Tensor, state: NewtonState
    ) -> tuple[Tensor, Tensor, NewtonState]:
        factors = self.linear_solver.factorize(state.jacobian)
        z = z - self.damping * factors.solve(r)
        jacobian = equations.jacobian(z)
        return z, jacobian.value, NewtonState(jacobian, factors)

    def restart(self, equations: Equations, z: Tensor, memory: None) -> tuple[Tensor, NewtonState]:
        """The residual and the state at z: nothing is remembered but z."""
        return self.init(equations, z)

    def memory(self, state: NewtonState) -> None:
        """What a restart needs beside z."""

    def inverse(self, state: NewtonState) -> tuple[Tensor, ...]:
        """The tensors of the last factors, to serve (transposed) in the backward; none after 0 steps."""
        return () if state.factors is None else state.factors.tensors

    def from_tensors(self, tensors: Sequence[Tensor]) -> Any:
        """The inverse again."""
        return self.linear_solver.from_tensors(tensors)
