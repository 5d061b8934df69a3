"""The linear model of the numbers whose squares are summed, r(z + p) ≈ r + J p, reduced to a triangle."""

from __future__ import annotations

from typing import Any, NamedTuple

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

    R, c : of the QR factorisation of J: its triangle, (B, n, n), and Qᵀr, (B, n).
    norm : ‖r(z)‖, (B,), without a gradient, and so
    columns : the norms of the columns of J, (B, n).
    value, jacobian : r(z), (B, m), and J, (B, m, n), for those who want to keep them.
    """

    R: Tensor
    c: Tensor
    norm: Tensor
    columns: Tensor
    value: Tensor | None = None
    jacobian: Tensor | None = None

    @staticmethod
    def of(linearised: Jacobian, keep: bool = False) -> Tangent:
        """From r linearised at z."""
        value, jacobian = linearised.value, linearised.to_dense()
        R, c = triangularise(jacobian, value)
        norm, columns = torch.linalg.vector_norm(value.detach(), dim=-1), R.detach().square().sum(-2).sqrt()
        return Tangent(R, c, norm, columns, *((value, jacobian) if keep else ()))

    @property
    def gradient(self) -> Tensor:
        """Jᵀr, (B, n)."""
        return apply(self.R.mT, self.c)

    @property
    def regular(self) -> Tensor:
        """Whether J has full rank beyond rounding, (B,)."""
        pivots = self.R.diagonal(dim1=-2, dim2=-1).detach().abs()
        level = 16 * self.R.shape[-1] * torch.finfo(self.R.dtype).eps
        return (pivots > level * self.columns).all(-1)

    def where(self, rows: Tensor, other: Tangent) -> Tangent:
        """This model in those rows, the other in the rest."""

        def choose(new: Tensor | None, old: Tensor | None) -> Any:
            return (
                None if new is None or old is None else torch.where(rows.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
            )

        return Tangent(*map(choose, self, other))


def condition(equations: Equations, tangent: Tangent, value: Tensor, z: Tensor) -> Tensor:
    """What vanishes at the solution, (B, n): r itself for a root, the angles for a fit."""
    return angle(tangent, z) if equations.kind.sums_squares else value


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
    norm, norm_new = old.norm, torch.linalg.vector_norm(linearised.value.detach(), dim=-1)
    decrease = 1 - (norm_new / norm).square()
    doubt = 2 * uncertainty(old, z) / norm
    hidden = rounding(torch.ones_like(norm)) + doubt
    if finished(~(decrease >= -hidden)):
        return old, torch.where(decrease.isfinite(), decrease, -torch.inf)
    new = Tangent.of(linearised, keep=old.jacobian is not None)
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
