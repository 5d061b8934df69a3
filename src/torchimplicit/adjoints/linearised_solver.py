"""By what the linear system of a derivative is solved, where values decide."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from torchimplicit.adjoints.posed import Posed, Tiled
from torchimplicit.adjoints.sweep import Sweep
from torchimplicit.autograd.transforms import finished, occurs
from torchimplicit.linear import GMRES, LU, Auto, Contraction, LinearResult, Neumann, Richardson
from torchimplicit.linear.auto import better_of
from torchimplicit.linear.binding import bind
from torchimplicit.linear.diagonal import Division
from torchimplicit.linear.direct import Direct
from torchimplicit.linear.factors import Factors
from torchimplicit.linear.iteration import ordinary, tolerance
from torchimplicit.linear.rounding import solved_by_matrix, solved_to_rounding
from torchimplicit.linear.solver import Bound, Preconditioner

REFINEMENTS = 4  # steps in which the inverse of a Jacobian near z* brings the residual down to tolerance
KRYLOV = 32  # steps of GMRES with an inverse that needs more: it is of a Jacobian farther away
ROUGHLY = 0.1  # relative residual of a solution that need only be known roughly
TINY = 64  # entries of all Jacobians of the batch up to which the backward forms them anew: they cost little more than one product


class LinearisedSolver:
    """A x = b, or Aᵀ x = b for the ``adjoint``, by the first that does it:

    1. one unknown: a division;
    2. up to ``TINY`` entries over the batch, in a first derivative: LU of A made anew, whose one true product brings the gradients too
       (not where the forward solve says which derivatives do not exist);
    3. the inverse that the forward solve has left, refined by up to ``REFINEMENTS`` true products;
    4. beyond n = 64, up to ``KRYLOV`` steps of GMRES with that inverse as the preconditioner;
    5. for what these have not solved: :class:`Contraction` where plain steps may do, else :class:`Auto`.

    A solver that the user has named takes the place of all. Up to n = 64 a system that only rounding keeps from its tolerance counts as
    solved, where no tolerance was named.
    """

    def __init__(self, posed: Posed, sweep: Sweep | None) -> None:
        self.settings, self.b, self.adjoint, self.sweep = posed.settings, posed.b, posed.transpose, sweep
        self.operator = posed.operator(None if sweep is None else sweep.in_z)
        self.named = self.settings.solver
        self.inverse: Tiled | Factors | None = posed.inverse if self.named is None else None
        self.inverse_is_near = self.inverse is not None  # to the inverse of A
        self.direct: Direct | None = None  # factors of A that were needed
        self.forgiven: Tensor | None = (
            None  # systems that only rounding keeps from their tolerance: z may be too near a singular one
        )

    @property
    def truncated(self) -> bool:
        """Whether the solver is a series that its user has cut off: an approximation, of which nothing is expected."""
        return isinstance(self.named, Neumann)

    @property
    def small(self) -> bool:
        """Whether A is so small that its factors cost little."""
        return self.operator.shape[-1] <= Auto.dense_limit

    @cached_property
    def state(self) -> Bound:
        """The chosen solver bound to the operator, when it is needed."""
        plain = self.settings.try_plain_steps and self.settings.memory is None
        automatic = Contraction() if plain else Auto()
        return bind(automatic if self.named is None else self.named, self.operator, REFINEMENTS)

    def solve(self) -> LinearResult:
        """The solution."""
        if self.named is None and self.operator.shape[-1] == 1:
            self.direct = Division(self.operator.to_dense().squeeze(-1))
            return self._by_factors(self.direct)[0]
        told = isinstance(self.inverse, Tiled) and self.inverse.refused is not None  # more than factors of A could tell
        if self.named is None and self.sweep is not None and math.prod(self.operator.shape) <= TINY and not told:
            self.inverse, self.inverse_is_near = LU(equilibrate=False).factorize(self.operator), True
            result, size = self._by_factors(self.inverse)
            if finished(result.converged) and ordinary(size):
                return result
        result = self._refined()
        if self.settings.forgiving and self.small and occurs(~result.converged):
            A = self.operator.to_dense()
            A = A.mT if self.adjoint else A
            rounded = solved_to_rounding(A, self.b, result.x)
            rounded = rounded & solved_by_matrix(A, self.b, result.x, result.residual_norm)
            self.forgiven = rounded & ~result.converged
            result = result._replace(converged=result.converged | rounded)
        return result

    def _by_factors(self, factors: Preconditioner) -> tuple[LinearResult, Tensor]:
        """By factors of A itself, and the norms of b. A true product tells whether no system influences another; where they may, the
        gradients come with it."""
        x = factors.solve(self.b, self.adjoint)
        if self.sweep is None:
            rest = self.b - self.operator.apply(x, self.adjoint)
        else:
            self.operator.count(1)
            rest = self.b + self.sweep.product(x)
        norms = torch.linalg.vector_norm(torch.stack((rest, self.b)), dim=-1)
        residual, size = norms[0], norms[1]
        no = torch.zeros_like(residual, dtype=torch.bool)
        converged = residual <= tolerance(size, self.settings.rtol, self.settings.atol)
        return LinearResult(x, residual, torch.ones_like(no, dtype=torch.int64), converged, no, no, 0), size

    def _refined(self) -> LinearResult:
        if self.inverse is None:
            return self._chosen(self.b)
        rtol, atol = self.settings.rtol, self.settings.atol
        refined = Richardson(preconditioner=self.inverse, max_steps=REFINEMENTS).factorize(self.operator)
        result = refined.iterate(self.b, self.adjoint, rtol=rtol, atol=atol)
        if finished(result.converged):
            return result
        self.inverse_is_near = False
        if not self.small:
            krylov = GMRES(preconditioner=self.inverse, restart=KRYLOV, max_steps=KRYLOV).factorize(self.operator)
            more = krylov.iterate(self.b, self.adjoint, x0=result.x.nan_to_num(), rtol=rtol, atol=atol)
            result = better_of(result, more)
        return result if finished(result.converged) else better_of(result, self._chosen(self.b))

    def _chosen(self, b: Tensor, rtol: float | None = None) -> LinearResult:
        settings = self.settings
        rtol = settings.rtol if rtol is None else rtol
        result = self.state.iterate(b, self.adjoint, rtol=rtol, atol=settings.atol, max_steps=settings.max_steps)
        self.direct = self.direct if self.state.direct is None else self.state.direct
        return result

    def roughly(self, b: Tensor) -> Tensor:
        """About the solution for another b."""
        return self._chosen(b, ROUGHLY).x
