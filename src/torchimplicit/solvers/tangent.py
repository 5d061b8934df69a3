"""The linear model of the numbers whose squares are summed, r(z + p) ≈ r + J p, reduced to a triangle."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.triangular import apply, full_rank, solve_triangle, triangularise
from torchimplicit.solvers.equations import Equations, Estimate
from torchimplicit.stopping import rounding
from torchimplicit.transforms import finished

ACCEPTED = 1e-4  # the part of the predicted decrease that a step must bring


class Tangent(NamedTuple):
    """‖r + J p‖² = ‖R p + c‖² + a constant.

    R, c : of the QR factorisation of J: its triangle, (B, n, n), and Qᵀr, (B, n).
    gradient : Jᵀr, (B, n).
    newton : R⁻¹c, (B, n): the step to the minimum of the model is −newton, where J has full rank.
    norm : ‖r(z)‖, (B,), without a gradient, and so
    columns : the norms of the columns of J, (B, n);
    terms : Σᵢ |Jᵢⱼ rᵢ|, what the gradient would be if nothing in its sums cancelled, (B, n);
    doubt : what rounding the unknowns may change the gradient by, eps |JᵀJ| |z|, (B, n).
    value, jacobian : r(z), (B, m), and J, (B, m, n), for those who want to keep them.
    """

    R: Tensor
    c: Tensor
    gradient: Tensor
    newton: Tensor
    norm: Tensor
    columns: Tensor
    terms: Tensor
    doubt: Tensor
    value: Tensor | None = None
    jacobian: Tensor | None = None

    @staticmethod
    def of(linearised: Jacobian, z: Tensor, keep: bool = False) -> Tangent:
        """From r linearised at z."""
        value, jacobian = linearised.value, linearised.to_dense()
        R, c = triangularise(jacobian, value)
        gradient = apply(jacobian.mT, value)
        norm, columns = torch.linalg.vector_norm(value.detach(), dim=-1), R.detach().square().sum(-2).sqrt()
        with torch.no_grad():
            terms = apply(jacobian.mT.abs(), value.abs())
            doubt = torch.finfo(z.dtype).eps * apply((R.mT @ R).abs(), z.abs())
        return Tangent(
            R, c, gradient, solve_triangle(R, c), norm, columns, terms, doubt, *((value, jacobian) if keep else ())
        )

    @property
    def regular(self) -> Tensor:
        """Whether J has full rank beyond rounding, (B,)."""
        return full_rank(self.R)

    def where(self, rows: Tensor, other: Tangent) -> Tangent:
        """This model in those rows, the other in the rest."""

        def choose(new: Tensor | None, old: Tensor | None) -> Any:
            return (
                None if new is None or old is None else torch.where(rows.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
            )

        return Tangent(*map(choose, self, other))


def condition(equations: Equations, tangent: Tangent, value: Tensor) -> Tensor:
    """What vanishes at the solution, (B, n): r itself, ``value``, for a root, Jᵀr for a fit."""
    return tangent.gradient if equations.kind.sums_squares else value


def estimate(tangent: Tangent) -> Estimate:
    """The step to the minimum of the model, which is Newton's for a root; infinite where J has not full rank."""
    return Estimate(torch.where(tangent.regular.unsqueeze(-1), tangent.newton, torch.inf), 0.0)


def compare(old: Tangent, linearised: Jacobian, z: Tensor, step: Tensor) -> tuple[Tangent, Tensor]:
    """The model at z + step, and the decrease of ‖r‖², relative to it, (B,): −∞ where r or J is not finite there.

    Where rounding hides the decrease, it is read off the slopes at both ends, to which rounding may have done no more than it
    can. J is not looked at where no system has come lower.
    """
    norm, norm_new = old.norm, torch.linalg.vector_norm(linearised.value.detach(), dim=-1)
    decrease = 1 - (norm_new / norm).square()
    with torch.no_grad():
        rounded = torch.finfo(z.dtype).eps * (old.terms / norm.unsqueeze(-1) * z.abs()).sum(-1) / norm
        hidden = rounding(torch.ones_like(norm)) + 2 * rounded
    if finished(~(decrease >= -hidden)):
        return old, torch.where(decrease.isfinite(), decrease, -torch.inf)
    new = Tangent.of(linearised, z + step, keep=old.jacobian is not None)
    with torch.no_grad():
        scaled = step / norm.unsqueeze(-1)
        slopes = (2 * old.doubt * scaled.abs() - (old.gradient + new.gradient) * scaled).sum(-1) / norm
        decrease = torch.where(decrease.abs() <= hidden, slopes, decrease)
        return new, torch.where(new.gradient.isfinite().all(-1) & decrease.isfinite(), decrease, -torch.inf)


def check_squares(equations: Equations, method: str) -> None:
    """Raise TypeError where there are bounds. (An objective that is no sum of squares is refused where it is evaluated.)"""
    if equations.kind.bounded:
        raise TypeError(f"{method} does not know of bounds. Use 'projected_newton', the default.")
