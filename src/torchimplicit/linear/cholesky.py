"""Cholesky factorisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchimplicit.linear.factors import DirectSolver, Factors, inverse_power_of_two


class CholeskyFactors(Factors):
    """D A D = L Lᴴ; tensors are (L, d, d). L is NaN where A is not Hermitian positive definite."""

    own: ClassVar[int] = 1

    def inverse(self, b: Tensor, adjoint: bool) -> Tensor:
        return torch.cholesky_solve(b, self.tensors[0])

    def pivots(self) -> Tensor:
        return self.tensors[0].diagonal(dim1=-2, dim2=-1) ** 2


FLAT = 16  # in units of n eps: pivots, or eigenvalues, that are smaller beside a diagonal of ones are 0


@dataclass(frozen=True)
class Cholesky(DirectSolver):
    """L Lᴴ = A for Hermitian positive definite matrices, at half the cost of LU.

    `singular` marks every system that is not: its matrix differs from its adjoint (by more than √eps of its size), or
    is indefinite, or singular to working precision. Such a system's x is NaN.
    Source: Golub and Van Loan, Matrix Computations (2013), section 4.2.
    """

    state = CholeskyFactors

    def _factorize(self, A: Tensor) -> tuple[Tensor, ...]:
        size = A.detach().abs()
        d = inverse_power_of_two(size.diagonal(dim1=-2, dim2=-1).sqrt())
        F = d.unsqueeze(-1) * A * d.unsqueeze(-2)
        with torch.no_grad():
            gap = (F - F.mH).abs().flatten(-2).sum(-1) / F.abs().flatten(-2).sum(-1)
            hermitian = gap <= torch.finfo(d.dtype).eps ** 0.5
        usable = (hermitian & F.detach().isfinite().flatten(-2).all(-1))[..., None, None]
        eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        L, info = torch.linalg.cholesky_ex(torch.where(usable, F, eye))
        usable = usable & (info == 0)[..., None, None]
        return torch.where(usable, L, torch.nan), d, d


def clearly_definite(L: Tensor, A: Tensor) -> Tensor:
    """Whether no pivot of a matrix A = L Lᵀ is rounding error beside its diagonal, which the units of unknowns do not change: (B,)."""
    with torch.no_grad():
        pivots, diagonal = L.diagonal(dim1=-2, dim2=-1), A.diagonal(dim1=-2, dim2=-1)
        return (pivots.square() > FLAT * A.shape[-1] * torch.finfo(A.dtype).eps * diagonal).all(-1)


def least_norm(H: Tensor, r: Tensor) -> Tensor:
    """H⁻¹r for a Hessian that is positive semidefinite up to rounding, the shortest of several in units in which its
    diagonal is one; infinite for any other."""
    with torch.no_grad():
        finite, diagonal = H.isfinite().flatten(1).all(-1), H.diagonal(dim1=-2, dim2=-1)
        unit = torch.where(finite.unsqueeze(-1) & (diagonal > 0), diagonal.abs(), 1).rsqrt()
        scaled = torch.where(finite[:, None, None], unit.unsqueeze(-1) * H * unit.unsqueeze(-2), 0)
        w, Q = torch.linalg.eigh(scaled)
        floor = FLAT * H.shape[-1] * torch.finfo(w.dtype).eps
        inverse = torch.where(w > floor, 1 / w, 0)
        x = unit * (Q @ (inverse.unsqueeze(-1) * (Q.mT @ (unit * r).unsqueeze(-1)))).squeeze(-1)
        usable = finite & (w[:, 0] >= -floor) & (w[:, -1] > 0)
        return torch.where(usable.unsqueeze(-1), x, torch.inf)
