"""Cholesky factorisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchimplicit.linear.factors import DirectSolver, Factors
from torchimplicit.norms import inverse_power_of_two


class CholeskyFactors(Factors):
    """D A D = L Lᴴ; tensors are (L, d, d). L is NaN where A is not Hermitian positive definite."""

    own: ClassVar[int] = 1
    title: ClassVar[str] = "Cholesky"

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

    in_graph: ClassVar[bool] = True
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


def least_norm(H: Tensor, r: Tensor, z: Tensor, start: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """H⁻¹r for a Hessian at z that is positive semidefinite up to rounding, the shortest of several in units in which its diagonal is
    one; infinite for any other. And whether z has run off along a slope that nothing bends, (B,).

    It is infinite too where r has a part in the null space that rounding does not explain: along it the objective has a slope, and no
    minimum. Rounding is that of r itself and of z, next to 0 that of numbers of size one, as atol = eps has it. Where z has run
    off its rounding may explain any slope: one that was there at the ``start``, z and r there, has to be seen to have gone.
    """
    with torch.no_grad():
        finite, diagonal = H.isfinite().flatten(1).all(-1), H.diagonal(dim1=-2, dim2=-1)
        unit = torch.where(finite.unsqueeze(-1) & (diagonal != 0), diagonal.abs(), 1).rsqrt()
        scaled = torch.where(finite[:, None, None], unit.unsqueeze(-1) * H * unit.unsqueeze(-2), 0)
        w, Q = torch.linalg.eigh(scaled)
        floor = FLAT * H.shape[-1] * torch.finfo(w.dtype).eps
        null = w <= floor

        def seen(z: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """The parts of r, how steep it is along the null space, and what rounding explains of that."""
            parts = (Q.mT @ (unit * r).unsqueeze(-1)).squeeze(-1)
            terms = (scaled.abs() @ ((1 + z.abs()) / unit).unsqueeze(-1)).squeeze(-1)
            level = floor * (torch.linalg.vector_norm(parts, dim=-1) + torch.linalg.vector_norm(terms, dim=-1))
            return parts, torch.linalg.vector_norm(torch.where(null, parts, 0), dim=-1), level

        parts, slope, level = seen(z, r)
        x = unit * (Q @ torch.where(null, 0, parts / w).unsqueeze(-1)).squeeze(-1)
        semidefinite = finite & (w[:, 0] >= -floor) & (w[:, -1] > 0)
        sloping, ran_off = ~(slope <= level), torch.zeros_like(finite)
        if start is not None:
            _, before, level_before = seen(*start)
            hidden = (level > before) & (slope > level_before)
            sloping = sloping | ((before > level_before) & ((slope > before / 2) | hidden))
            ran_off = semidefinite & (before > level_before) & hidden
        return torch.where((semidefinite & ~sloping).unsqueeze(-1), x, torch.inf), ran_off
