"""The chord method: Newton with the Jacobian of the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from torchimplicit.linear.factors import DirectSolver
from torchimplicit.solvers.equations import Equations
from torchimplicit.solvers.newton import PLAIN_LU, check_direct, kept

Factorised = tuple[Tensor, ...]  # the tensors of factors


@dataclass(frozen=True)
class Chord:
    """z ← z − J(z0)⁻¹ g(z): one factorisation for all steps, linear convergence, fast from a good start.

    Source: Kelley, Iterative Methods for Linear and Nonlinear Equations (1995), section 5.4.1.
    """

    linear_solver: DirectSolver = PLAIN_LU
    max_steps: ClassVar[int] = 200
    patience: ClassVar[int] = 20
    rowwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_direct(self.linear_solver, "Chord")

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, Factorised]:
        jacobian = equations.jacobian(z)
        return jacobian.value, self.linear_solver.factorize(jacobian).tensors

    def step(
        self, equations: Equations, z: Tensor, r: Tensor, factors: Factorised
    ) -> tuple[Tensor, Tensor, Factorised]:
        z = z - self.linear_solver.from_tensors(factors).solve(r)
        return z, equations.residual(z), factors

    def inverse(self, factors: Factorised) -> tuple[Tensor, ...]:
        """The tensors of the factors, to serve (transposed) in the backward."""
        return kept(factors)

    def from_tensors(self, tensors: Sequence[Tensor]) -> Any:
        """The inverse again."""
        return self.linear_solver.from_tensors(tensors)
