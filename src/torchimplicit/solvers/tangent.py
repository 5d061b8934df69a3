"""The linear model of the numbers whose squares are summed, r(z + p) ≈ r + J p, reduced to a triangle."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.triangular import apply, triangularise
from torchimplicit.solvers.equations import Equations


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

    def where(self, rows: Tensor, other: Tangent) -> Tangent:
        """This model in those rows, the other in the rest."""
        pairs = zip(self, other, strict=True)
        return Tangent(*(torch.where(rows.reshape(-1, *(1,) * (new.ndim - 1)), new, old) for new, old in pairs))


def condition(equations: Equations, tangent: Tangent, z: Tensor) -> Tensor:
    """What vanishes at the solution, (B, n): r itself for a root, the angles for a fit."""
    return angle(tangent, z) if equations.kind.minimised else tangent.value


def angle(tangent: Tangent, z: Tensor) -> Tensor:
    """What vanishes at a fit, (B, n): the cosines of the angles between r and the columns of J, gⱼ / (‖Jⱼ‖ ‖r‖) with g = Jᵀr.

    Neither the units of r nor those of z matter. As much of ‖r‖ as rounding alone brings about, eps · ‖(‖Jⱼ‖ zⱼ)ⱼ‖, is taken off
    the lengths gⱼ / ‖Jⱼ‖ of the projections first, so that a residual that is nothing but rounding has converged.
    Source: Dennis and Schnabel, Numerical Methods for Unconstrained Optimization and Nonlinear Equations (1983), section 10.4.
    """
    size, norm = tangent.columns, tangent.norm.unsqueeze(-1)
    projection = tangent.gradient / torch.where(size == 0, 1, size)
    rounding = torch.finfo(z.dtype).eps * torch.linalg.vector_norm((size * z).detach(), dim=-1, keepdim=True)
    projection = projection.sign() * (projection.abs() - rounding).clamp(min=0)
    return projection / torch.where(norm == 0, 1, norm)
