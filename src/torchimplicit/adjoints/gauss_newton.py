"""The Gauss–Newton gradient of a fit: that of the linear least-squares problem at z*."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from torchimplicit.adjoints.failed import replace_failed
from torchimplicit.adjoints.implicit import Implicit
from torchimplicit.adjoints.noted import noted
from torchimplicit.autograd.transforms import inside_functorch, inside_transform, occurs
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.triangularise import full_rank, solve_triangle, triangularise
from torchimplicit.linear.vectors import times
from torchimplicit.problem import Problem
from torchimplicit.solution import Solution, SolveStats
from torchimplicit.status import Status, announce


@dataclass(frozen=True)
class GaussNewton:
    """The gradient of one Gauss–Newton step z* − J⁺ r(z*, x), z* and J = ∂r/∂z held fixed: dz*/dx ≈ −J⁺ ∂r/∂x. An approximation.

    It leaves out the second derivatives of r, each of which is multiplied by a residual: exact where the residuals vanish at z*,
    or where r is linear in z and J does not depend on x; else off by as much as r is large and bent. It needs the first
    derivatives of r only, and one QR factorisation of J. The value is z* itself. For ``least_squares`` without bounds; of first
    order: its own derivative is that of the step, not of z*.
    Source: Björck, Numerical Methods for Least Squares Problems (1996), section 9.2.
    """

    def run(self, problem: Problem, z0: Tensor) -> Solution:
        """Solve, and attach the derivative of the step. A system where J has not full rank has none, and the status SINGULAR.

        Raises:
            TypeError: the problem is no fit, or it has bounds.
            ConvergenceError: J has not full rank, under ``on_failure="raise"``.
        """
        if not problem.kind.sums_squares or problem.kind.bounded:
            raise TypeError(
                "GaussNewton() is the derivative of a least-squares fit without bounds. Use Implicit(), which is exact."
            )
        found, facts, aux = Implicit().solve_only(problem, z0)
        if not torch.is_grad_enabled() and not inside_transform():
            return problem.solution(found, facts, aux)
        z = replace_failed(found, facts.status)
        with torch.no_grad():
            jacobian = Jacobian(lambda z: problem.kind.squares(problem.function, z), z).to_dense().detach()
        R, c = triangularise(jacobian, problem.kind.squares(problem.function, z))
        usable = full_rank(R)
        singular = ~usable & (facts.status == Status.CONVERGED)
        if occurs(singular):
            facts = facts._replace(status=torch.where(singular, Status.SINGULAR, facts.status))
            if not inside_functorch():
                announce(
                    f"The Gauss-Newton derivative does not exist in {int(singular.sum())} of {len(singular)} systems: "
                    f"{Status.SINGULAR.prose_for('least-squares fit')}",
                    problem.on_failure,
                )
        eye = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
        step = solve_triangle(torch.where(usable[:, None, None], R, eye), c)
        step = torch.where((usable & (facts.status != Status.NONFINITE)).unsqueeze(-1), step, 0)
        told = partial(_told, jacobian.shape[-2], problem.tolerance.rtol)
        z = noted(found - (step - step.detach()), problem, told, facts.status, R.detach())
        return problem.solution(z, facts, aux)


def _told(m: int, rtol: float, v: Tensor, status: Tensor, R: Tensor) -> SolveStats:
    """Of the adjoint system Rᵀy = v, of which Qy is the gradient in r: solved directly, after m products for J = QR."""
    y = solve_triangle(R, v, transposed=True)
    residual = torch.linalg.vector_norm(v - times(R.mT, y), dim=-1)
    solved = residual <= rtol * torch.linalg.vector_norm(v, dim=-1)
    ended = torch.where(solved, Status.CONVERGED, Status.STAGNATED)
    singular_or_failed = (status == Status.SINGULAR) | (status == Status.NONFINITE)
    ended = torch.where(singular_or_failed, status, ended)
    return SolveStats.counted(ended, torch.ones_like(ended), residual, torch.full_like(residual, torch.nan), 0, m)
