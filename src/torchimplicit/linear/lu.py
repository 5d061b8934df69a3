"""LU factorisation with partial pivoting."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .factors import DirectSolver, Factors, equilibrate


class LUFactors(Factors):
    """D A C = P L U; tensors are (LU, pivots, d, c)."""

    def inverse(self, b: Tensor, adjoint: bool) -> Tensor:
        LU, pivots, *_ = self.tensors
        return torch.linalg.lu_solve(LU, pivots, b, adjoint=adjoint)

    def pivots(self) -> Tensor:
        return self.tensors[0].diagonal(dim1=-2, dim2=-1)


@dataclass(frozen=True)
class LU(DirectSolver):
    """Gaussian elimination with partial pivoting of the equilibrated matrix: the default for small dense systems.

    Source: Golub and Van Loan, Matrix Computations (2013), section 3.4.
    """

    state = LUFactors

    def _factorize(self, A: Tensor) -> tuple[Tensor, ...]:
        F, d, c = equilibrate(A)
        LU, pivots, _ = torch.linalg.lu_factor_ex(F)
        return LU, pivots, d, c
