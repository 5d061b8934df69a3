"""The truncated Neumann series."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.linear.factors import square
from torchimplicit.linear.iteration import euclidean_norm, tolerance
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.preconditioning import Preconditioning, check_preconditioner, prepare
from torchimplicit.linear.solver import Bound, LinearResult, Preconditioner
from torchimplicit.linear.vectors import fit
from torchimplicit.parameters import check_count


@dataclass(frozen=True)
class Neumann:
    """x = Σ_{k < terms} (I − A)ᵏ b: exactly `terms` powers, whether or not the series converges.

    It tends to A⁻¹ b where the spectral radius of I − A is below one; for A = I − J that is the sum I + J + J² + ...
    With a preconditioner M the series is that of M⁻¹A x = M⁻¹b, and its adjoint that of AᴴM⁻ᴴ, so that in every case
    `solve(·, adjoint=True)` is the exact adjoint of `solve(·)`.

    Attributes:
        terms: number of powers, at least 1; 1 returns b.
        preconditioner: as for the other iterative solvers.
    """

    terms: int
    preconditioner: Preconditioning = None

    def __post_init__(self) -> None:
        check_count("Neumann: terms", self.terms)
        check_preconditioner(self.preconditioner)

    def factorize(self, operator: LinearOperator) -> NeumannState:
        """The state for this operator.

        Raises:
            ValueError: the operator is not square.
            TypeError: the preconditioner is an operator without a direct solve, or does not fit this operator.
        """
        square(operator, "Neumann")
        return NeumannState(self.terms, operator, prepare(self.preconditioner, operator))


class NeumannState(Bound):
    """The series bound to an operator."""

    def __init__(self, terms: int, operator: LinearOperator, preconditioner: Preconditioner | None) -> None:
        self.terms = terms
        self.operator = operator
        self.preconditioner = preconditioner

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """The sum for b of shape (*lead, *batch_shape, n), by Horner's rule: terms − 1 products."""
        operator = self.operator
        b = fit(b, operator.batch_shape, operator.shape[-1], operator.dtype, name="b")
        start = b if self.preconditioner is None else self.preconditioner.solve(b, adjoint)
        x = start
        for _ in range(self.terms - 1):
            Ax = operator.apply(x, adjoint)
            x = x + start - (Ax if self.preconditioner is None else self.preconditioner.solve(Ax, adjoint))
        return x

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
        """The same sum with its true residual; from x0, the sum for b − A x0 added to it.

        The tolerances decide `converged` alone. The number of terms is the method's own: `max_steps` changes nothing.
        """
        operator = self.operator
        b = fit(b, operator.batch_shape, operator.shape[-1], operator.dtype, name="b")
        if x0 is None:
            x = self.solve(b, adjoint)
        else:
            x0 = fit(x0, operator.batch_shape, operator.shape[-1], operator.dtype, name="x0")
            x = x0 + self.solve(b - operator.apply(x0.expand(b.shape), adjoint), adjoint)
        norm_b = euclidean_norm(b)
        x = torch.where((norm_b == 0).unsqueeze(-1), 0, x)
        residual = euclidean_norm((b - operator.apply(x, adjoint)).detach())
        residual = torch.where(norm_b == 0, 0, residual)
        converged = residual <= tolerance(norm_b.detach(), rtol, atol)
        steps = torch.where(norm_b == 0, 0, torch.full_like(residual, self.terms, dtype=torch.int64))
        products = self.terms + (0 if x0 is None else 1)
        return LinearResult(x, residual, steps, converged, ~residual.isfinite(), torch.zeros_like(converged), products)
