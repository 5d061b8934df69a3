"""LU factorisation with partial pivoting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import tracing, values_hidden
from torchimplicit.linear import small_lu, written_out
from torchimplicit.linear.factors import DirectSolver, Factors, equilibrate


class LUFactors(Factors):
    """D A C = P L U; tensors are (LU, pivots, d, c), or (LU, pivots) where A was not scaled. A number is its own LU."""

    own: ClassVar[int] = 2
    title: ClassVar[str] = "LU"

    def inverse(self, b: Tensor, adjoint: bool) -> Tensor:
        LU, pivots, *_ = self.tensors
        if LU.shape[-1] == 1:
            return b / (LU.mH if adjoint else LU)
        if tracing() and LU.shape[-1] <= written_out.LARGEST:
            return written_out.solve(LU, pivots, b, adjoint)
        if tracing() and b.shape[-1] == 1 and small_lu.pays(LU):
            return small_lu.solve(LU, pivots, b.squeeze(-1), adjoint).unsqueeze(-1)
        return torch.linalg.lu_solve(LU, pivots, b, adjoint=adjoint)

    def pivots(self) -> Tensor:
        return self.tensors[0].diagonal(dim1=-2, dim2=-1)


@dataclass(frozen=True)
class LU(DirectSolver):
    """Gaussian elimination with partial pivoting: the default for small dense systems.

    Attributes:
        equilibrate: scale rows and columns first, so that partial pivoting and `singular` see entries of size one
            whatever the units of the equations. Off, it costs half, and `singular` is judged on A as it is.

    Source: Golub and Van Loan, Matrix Computations (2013), section 3.4.
    """

    equilibrate: bool = True

    in_graph: ClassVar[bool] = True
    state = LUFactors

    def _factorize(self, A: Tensor) -> tuple[Tensor, ...]:
        if not self.equilibrate or A.shape[-1] == 1:
            return factor(A)
        F, d, c = equilibrate(A)
        return (*factor(F), d, c)


THREADED = 128  # largest n for which LAPACK never runs a factorisation on several threads


def factor(F: Tensor) -> tuple[Tensor, Tensor]:
    """(LU, pivots) of a batch of matrices.

    On the CPU with several threads, PyTorch factorises a batch of larger matrices in concurrent calls of a LAPACK that runs
    threads of its own, which gives wrong pivots or hangs (pytorch/pytorch#142815, #181570). There each matrix has its own
    call; LAPACK's threads then share the work of each.
    """
    if F.shape[-1] == 1:
        return F, torch.ones((), dtype=torch.int32, device=F.device).expand(F.shape[:-1])
    if tracing() and F.shape[-1] <= written_out.LARGEST:
        return written_out.factor(F)
    if tracing() and small_lu.pays(F):
        return small_lu.factor(F)
    if tracing() and F.device.type == "cpu" and F.shape[-1] > THREADED:
        found: tuple[Tensor, Tensor] = _factor_one_by_one(F)
        return found
    threads = torch.get_num_threads()
    if F.device.type != "cpu" or F.shape[-1] <= THREADED or threads == 1:
        LU, pivots, _ = torch.linalg.lu_factor_ex(F)
        return LU, pivots
    if values_hidden():  # the batch of a vmap cannot be taken apart
        torch.set_num_threads(1)
        try:
            LU, pivots, _ = torch.linalg.lu_factor_ex(F)
        finally:
            torch.set_num_threads(threads)
        return LU, pivots
    matrices = F.reshape(-1, *F.shape[-2:])
    factors = [torch.linalg.lu_factor_ex(matrix)[:2] for matrix in matrices]
    LU, pivots = (
        (torch.stack(parts) for parts in zip(*factors, strict=True)) if factors else (matrices, matrices[..., 0].int())
    )
    return LU.reshape(F.shape), pivots.reshape(F.shape[:-1])


@torch.library.custom_op("torchimplicit::factor_one_by_one", mutates_args=())
def _factor_one_by_one(F: Tensor) -> tuple[Tensor, Tensor]:
    """The same when a graph runs, with however many threads there are then."""
    LU, pivots = factor(F)
    return LU.contiguous(), pivots.clone()


@_factor_one_by_one.register_fake
def _(F: Tensor) -> tuple[Tensor, Tensor]:
    return F.new_empty(F.shape), F.new_empty(F.shape[:-1], dtype=torch.int32)
