"""The chord method: Newton with the Jacobian of the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from torchimplicit.linear.factors import DirectSolver
from torchimplicit.linear.shortest import ShortestInverse
from torchimplicit.linear.solver import Left
from torchimplicit.solvers.equations import Equations, Estimate
from torchimplicit.solvers.method import Method
from torchimplicit.solvers.newton import PLAIN_LU, check_direct, inverse_at, kept


class ChordState(NamedTuple):
    """The factors, and the next step but for its sign, (B, n)."""

    factors: ShortestInverse
    correction: Tensor


@dataclass(frozen=True)
class Chord(Method):
    """z ← z − J(z0)⁻¹ g(z): one factorisation for all steps, linear convergence, fast from a good start. Where J is
    singular along a gauge, the steps are the shortest of several.

    Source: Kelley, Iterative Methods for Linear and Nonlinear Equations (1995), section 5.4.1.
    """

    linear_solver: DirectSolver = None  # type: ignore[assignment]  # LU without scaling
    max_steps: ClassVar[int] = 200
    patience: ClassVar[int] = 20
    in_graph: ClassVar[bool] = True
    inverse_is_earlier: ClassVar[bool] = True
    rowwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.linear_solver:  # a default that torch.compile can read
            object.__setattr__(self, "linear_solver", PLAIN_LU)
        check_direct(self.linear_solver, "Chord")

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, ChordState]:
        jacobian = equations.jacobian(z)
        factors = inverse_at(equations, z, jacobian, self.linear_solver)
        return jacobian.value, ChordState(factors, factors.solve(self.linear_solver, jacobian.value))

    def step(self, equations: Equations, z: Tensor, r: Tensor, state: ChordState) -> tuple[Tensor, Tensor, ChordState]:
        z = z - state.correction
        r = equations.residual(z)
        return z, r, ChordState(state.factors, state.factors.solve(self.linear_solver, r))

    def estimate(self, z: Tensor, r: Tensor, state: ChordState) -> Estimate:
        """The next step, which is Newton's at the start."""
        return Estimate(state.correction, 0.0)

    def inverse(self, state: ChordState) -> tuple[Tensor, ...]:
        """The tensors of the factors, to serve (transposed) in the backward."""
        return kept(state.factors.factors)

    def from_tensors(self, tensors: Sequence[Tensor]) -> Left:
        """The inverse again."""
        return self.linear_solver.from_tensors(tensors)
