"""Algebraic multigrid, by PyAMG: an approximate inverse in time and memory that grow with the number of entries only."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from torchimplicit.linear.external import applied
from torchimplicit.linear.sparse import Sparse


class Multigrid:
    """One V-cycle of a PyAMG hierarchy of B matrices as the diagonal blocks of one, and of another for their adjoints."""

    title = "algebraic multigrid"

    def __init__(self, cycle: Any, transposed: Any, size: int) -> None:
        self._cycle, self._transposed, self._size = cycle, transposed, size

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """About the x with A x = b or Aᴴ x = b, (*lead, B, n). Differentiable in b."""
        return applied(self._solve, b, adjoint)

    def _solve(self, b: Tensor, adjoint: bool) -> Tensor:
        cycle = self._transposed if adjoint else self._cycle
        rows = b.reshape(-1, self._size).cpu().numpy()
        x = torch.stack([torch.from_numpy(cycle.matvec(row)) for row in rows])
        return x.to(dtype=b.dtype, device=b.device).reshape(b.shape)


def multigrid_of(matrix: Sparse) -> Multigrid | None:
    """The hierarchy for a batch of matrices; None where PyAMG is not installed (``pip install torchimplicit[amg]``).

    Source: Ruge and Stüben, Algebraic multigrid, in Multigrid Methods (SIAM, 1987); Bell, Olson and Schroder, PyAMG, J. Open Source
    Softw. 7 (2022).
    """
    if find_spec("pyamg") is None:
        return None
    import pyamg
    from scipy.sparse import csr_matrix

    pattern, batch = matrix.pattern, matrix.batch_shape.numel()
    starts, columns = (index.cpu().numpy() for index in pattern.blocks(batch))
    size = batch * pattern.n
    blocks = csr_matrix((matrix.values.cpu().double().numpy().reshape(-1), columns, starts), shape=(size, size))
    cycle = pyamg.ruge_stuben_solver(blocks).aspreconditioner()
    off = abs(blocks - blocks.T)
    symmetric = off.max() <= 1e-8 * abs(blocks).max()
    transposed = cycle if symmetric else pyamg.ruge_stuben_solver(blocks.T.tocsr()).aspreconditioner()
    return Multigrid(cycle, transposed, size)
