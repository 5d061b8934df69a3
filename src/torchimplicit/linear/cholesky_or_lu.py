"""Cholesky factors for the matrices of a batch that have them, and LU factors for the others."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished
from torchimplicit.linear.cholesky import Cholesky
from torchimplicit.linear.direct import Direct
from torchimplicit.linear.factors import Factors
from torchimplicit.linear.lu import LU
from torchimplicit.linear.operators import LinearOperator


class CholeskyOrLU:
    """Cholesky factors, and LU factors for the systems that have none."""

    title, final = "Cholesky", True

    def __init__(self, cholesky: Factors, lu: Factors) -> None:
        self.cholesky = cholesky
        self.lu = lu

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        failed = self.cholesky.singular.unsqueeze(-1)
        return torch.where(failed, self.lu.solve(b, adjoint), self.cholesky.solve(b, adjoint))

    @property
    def suspicious(self) -> Tensor:
        """Whether the factors that are used say so."""
        return torch.where(self.cholesky.singular, self.lu.suspicious, self.cholesky.suspicious)

    @property
    def singular(self) -> Tensor:
        """Whether both say so."""
        return self.cholesky.singular & self.lu.singular


def cholesky_or_lu(operator: LinearOperator) -> Direct:
    """Of every matrix of the batch, which are promised to be definite."""
    cholesky = Cholesky().factorize(operator)
    if finished(~cholesky.singular):
        return cholesky
    return CholeskyOrLU(cholesky, LU().factorize(operator))
