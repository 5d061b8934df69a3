"""The linear model of the numbers whose squares are summed, r(z + p) ≈ r + J p, reduced to a triangle."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.triangular import apply, triangularise
from torchimplicit.solvers.equations import Equations
from torchimplicit.stopping import rounding
from torchimplicit.transforms import finished

ACCEPTED = 1e-4  # the part of the predicted decrease that a step must bring


class Tangent(NamedTuple):
    """‖r + J p‖² = ‖R p + c‖² + a constant.

    value : r(z), (B, m).
    R, c : of the QR factorisation of J: its triangle, (B, n, n), and Qᵀr, (B, n).
    jacobian : J itself, (B, m, n).
    """

    value: Tensor
    R: Tensor
    c: Tensor
    jacobian: Tensor

    @staticmethod
    def of(linearised: Jacobian) -> Tangent:
        """From r linearised at z."""
        jacobian = linearised.to_dense()
        return Tangent(linearised.value, *triangularise(jacobian, linearised.value), jacobian)

    @property
    def norm(self) -> Tensor:
        """‖r‖, (B,)."""
        return torch.linalg.vector_norm(self.value, dim=-1)

    @property
    def columns(self) -> Tensor:
        """The norms of the columns of J, (B, n)."""
        return torch.linalg.vector_norm(self.R, dim=-2)

    @property
    def gradient(self) -> Tensor:
        """Jᵀr, (B, n)."""
        return apply(self.R.mT, self.c)

    @property
    def regular(self) -> Tensor:
        """Whether J has full rank beyond rounding, (B,)."""
        pivots = self.R.diagonal(dim1=-2, dim2=-1).detach().abs()
        level = 16 * self.R.shape[-1] * torch.finfo(self.R.dtype).eps
        return (pivots > level * self.columns.detach()).all(-1)

    def where(self, rows: Tensor, other: Tangent) -> Tangent:
        """This model in those rows, the other in the rest."""
        pairs = zip(self, other, strict=True)
        return Tangent(*(torch.where(rows.reshape(-1, *(1,) * (new.ndim - 1)), new, old) for new, old in pairs))


def condition(equations: Equations, tangent: Tangent, z: Tensor) -> Tensor:
    """What vanishes at the solution, (B, n): r itself for a root, the angles for a fit."""
    return angle(tangent, z) if equations.kind.sums_squares else tangent.value


def angle(tangent: Tangent, z: Tensor) -> Tensor:
    """What vanishes at a fit, (B, n): the cosines of the angles between r and the columns of J, gⱼ / (‖Jⱼ‖ ‖r‖) with g = Jᵀr.

    Neither the units of r nor those of z matter. What rounding alone may bring about (:func:`uncertainty`) is taken off the lengths
    gⱼ / ‖Jⱼ‖ of the projections first, so that a residual that is nothing but rounding has converged.
    Source: Dennis and Schnabel, Numerical Methods for Unconstrained Optimization and Nonlinear Equations (1983), section 10.4.
    """
    size, norm = tangent.columns, tangent.norm.unsqueeze(-1)
    projection = tangent.gradient / torch.where(size == 0, 1, size)
    projection = projection.sign() * (projection.abs() - uncertainty(tangent, z).unsqueeze(-1)).clamp(min=0)
    return projection / torch.where(norm == 0, 1, norm)


def uncertainty(tangent: Tangent, z: Tensor) -> Tensor:
    """The part of ‖r‖ that rounding the unknowns brings about, eps · ‖(‖Jⱼ‖ zⱼ)ⱼ‖, (B,)."""
    with torch.no_grad():
        return torch.finfo(z.dtype).eps * torch.linalg.vector_norm(tangent.columns * z, dim=-1)


def compare(old: Tangent, linearised: Jacobian, z: Tensor, step: Tensor) -> tuple[Tangent, Tensor]:
    """The model at z + step, and the decrease of ‖r‖², relative to it, (B,): −∞ where r or J is not finite there.

    Where rounding hides the decrease, it is read off the slopes at both ends, to which rounding may have done no more than it
    can. J is not looked at where no system has come lower.
    """
    norm, norm_new = (torch.linalg.vector_norm(value.detach(), dim=-1) for value in (old.value, linearised.value))
    decrease = 1 - (norm_new / norm).square()
    doubt = 2 * uncertainty(old, z) / norm
    hidden = rounding(torch.ones_like(norm)) + doubt
    if finished(~(decrease >= -hidden)):
        return old, torch.where(decrease.isfinite(), decrease, -torch.inf)
    new = Tangent.of(linearised)
    with torch.no_grad():
        scaled = step / norm.unsqueeze(-1)
        slopes = -((old.gradient + new.gradient) / norm.unsqueeze(-1) * scaled).sum(-1)
        doubt = doubt * (old.columns * scaled.abs()).sum(-1)
        decrease = torch.where(decrease.abs() <= hidden, slopes + doubt, decrease)
        return new, torch.where(new.gradient.isfinite().all(-1) & decrease.isfinite(), decrease, -torch.inf)


def check_squares(equations: Equations, method: str) -> None:
    """Raise TypeError where there are bounds. (An objective that is no sum of squares is refused where it is evaluated.)"""
    if equations.kind.bounded:
        raise TypeError(f"{method} does not know of bounds. Use 'projected_newton', the default.")
