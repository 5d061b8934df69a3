"""Singular value decomposition: pseudo-inverses, for those who ask for them by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchimplicit.linear.factors import DirectSolver, Factors


class SVDFactors(Factors):
    """D A C = U diag(s) Vᴴ; tensors are (U, s, V), the singular values that count as zero being infinite."""

    own: ClassVar[int] = 3
    title: ClassVar[str] = "SVD"

    def inverse(self, b: Tensor, adjoint: bool) -> Tensor:
        U, s, V = self.tensors[:3]
        before, after = (V, U) if adjoint else (U, V)
        return after @ ((before.mH @ b) / s.unsqueeze(-1).to(b.dtype))

    def pivots(self) -> Tensor:
        return torch.ones_like(self.tensors[1])  # a singular matrix has a pseudo-inverse as well


@dataclass(frozen=True)
class SVD(DirectSolver):
    """The pseudo-inverse: of a singular system that has solutions the shortest one.

    Where it has none, what this gives is as near as possible, and counts as failed; ``linear_solve(..., shortest=True)`` asks for
    that. Derivatives are taken as if the rank did not change; those of the solution in a direction of the null space do not exist.

    Attributes:
        rank_rtol: singular values below this part of the largest count as zero; None: eps times the number of unknowns.

    Source: Golub and Van Loan, Matrix Computations (2013), section 5.5.
    """

    rank_rtol: float | None = None

    state = SVDFactors

    def _factorize(self, A: Tensor) -> tuple[Tensor, ...]:
        finite = A.detach().isfinite().flatten(-2).all(-1)[..., None, None]
        U, s, Vh = torch.linalg.svd(torch.where(finite, A, 0))
        part = A.shape[-1] * torch.finfo(s.dtype).eps if self.rank_rtol is None else self.rank_rtol
        zero = s <= part * s[..., :1]
        return torch.where(finite, U, torch.nan), torch.where(zero, torch.inf, s), Vh.mH
