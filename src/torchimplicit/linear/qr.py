"""QR factorisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchimplicit.linear.factors import DirectSolver, Factors, equilibrate


class QRFactors(Factors):
    """D A C = Q R; tensors are (Q, R, d, c)."""

    own: ClassVar[int] = 2
    title: ClassVar[str] = "QR"

    def inverse(self, b: Tensor, adjoint: bool) -> Tensor:
        Q, R, *_ = self.tensors
        if adjoint:
            return Q @ torch.linalg.solve_triangular(R.mH, b, upper=False)
        return torch.linalg.solve_triangular(R, Q.mH @ b, upper=True)

    def pivots(self) -> Tensor:
        return self.tensors[1].diagonal(dim1=-2, dim2=-1)


@dataclass(frozen=True)
class QR(DirectSolver):
    """Householder QR of the equilibrated matrix: twice the work of LU, without growth of the factors.

    Source: Golub and Van Loan, Matrix Computations (2013), section 5.2.
    """

    in_graph: ClassVar[bool] = True
    state = QRFactors

    def _factorize(self, A: Tensor) -> tuple[Tensor, ...]:
        F, d, c = equilibrate(A)
        finite = F.detach().isfinite().flatten(-2).all(-1)[..., None, None]
        Q, R = torch.linalg.qr(torch.where(finite, F, 0))
        return Q, torch.where(finite, R, torch.nan), d, c
