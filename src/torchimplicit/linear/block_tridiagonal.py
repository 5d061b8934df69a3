"""Block tridiagonal and block bidiagonal matrices: sequences in which each element depends on its neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.linear.block_elimination import BlockElimination
from torchimplicit.linear.direct import Direct
from torchimplicit.linear.lapack import BandLU, available
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.structure import Structure
from torchimplicit.linear.vectors import times


class BlockTridiagonal(LinearOperator):
    """Matrices of N × N blocks (p, p), of which those on the diagonal and beside it are not zero: vectors are (..., N p).

    Args:
        below: (*batch_shape, N − 1, p, p), where block i couples the unknowns i to the equations i + 1.
        diagonal: (*batch_shape, N, p, p).
        above: (*batch_shape, N − 1, p, p), where block i couples the unknowns i + 1 to the equations i. None: block bidiagonal, a
            recurrence such as implicit time steps, of which all are taken at once.
        symmetric, positive_definite: promises.

    Solved like a :class:`torchimplicit.linear.Banded`: by LAPACK, or in torch by eliminating every other block at a time, which is
    the parallel scan of a recurrence.

    Raises:
        ValueError: the shapes do not belong together.
    """

    explicit = True
    leading = True
    parts = ("below", "diagonal", "above")
    options = ("symmetric", "positive_definite")

    def __init__(
        self,
        below: Tensor,
        diagonal: Tensor,
        above: Tensor | None = None,
        symmetric: bool = False,
        positive_definite: bool = False,
    ) -> None:
        *batch, N, p, q = diagonal.shape
        beside = (*batch, N - 1, p, p)
        if p != q or below.shape != beside or (above is not None and above.shape != beside):
            raise ValueError(
                f"BlockTridiagonal got blocks of shapes {tuple(below.shape)} below, {tuple(diagonal.shape)} on and "
                f"{None if above is None else tuple(above.shape)} above the diagonal; expected (..., N − 1, p, p), (..., N, p, p) and "
                "(..., N − 1, p, p) or None"
            )
        self.width = 2 * p - 1
        facts = Structure(self.width, p - 1 if above is None else self.width, symmetric, positive_definite)
        super().__init__((*batch, N * p, N * p), diagonal.dtype, diagonal.device, **facts.as_keywords())
        self.below, self.diagonal, self.above = below, diagonal, above
        self.N, self.p = N, p

    def matvec(self, x: Tensor) -> Tensor:
        return self._product(x, self.below, self.diagonal, self.above)

    def rmatvec(self, y: Tensor) -> Tensor:
        below = None if self.above is None else self.above.mH
        return self._product(y, below, self.diagonal.mH, self.below.mH)

    def _product(self, x: Tensor, below: Tensor | None, diagonal: Tensor, above: Tensor | None) -> Tensor:
        x = x.unflatten(-1, (self.N, self.p))
        y, pad = times(diagonal, x), torch.nn.functional.pad
        if below is not None:
            y = y + pad(times(below, x[..., :-1, :]), (0, 0, 1, 0))
        if above is not None:
            y = y + pad(times(above, x[..., 1:, :]), (0, 0, 0, 1))
        return y.flatten(-2)

    def _adjoint(self) -> LinearOperator:
        if self.above is None:
            return super()._adjoint()
        return BlockTridiagonal(self.above.mH, self.diagonal.mH, self.below.mH)

    def direct(self) -> Direct | None:
        above = torch.zeros_like(self.below) if self.above is None else self.above
        if available(self.diagonal, self.below, above):
            return BandLU(self._bands(above), self.width, int(self.structure.upper))
        return BlockElimination(self.below, self.diagonal, above)

    def _bands(self, above: Tensor) -> Tensor:
        """As for a banded matrix."""
        n, upper = self.shape[-1], int(self.structure.upper)
        bands = torch.zeros((*self.batch_shape, (self.width + upper + 1) * n), dtype=self.dtype)
        row = torch.arange(n).reshape(self.N, self.p, 1)
        for side, blocks in ((-1, self.below), (0, self.diagonal), (1, above)):
            if side == 1 and self.above is None:
                continue
            rows = row[max(0, -side) : self.N - max(0, side)]
            columns = row.mT[max(0, side) : self.N - max(0, -side)]
            place = (upper + rows - columns) * n + columns
            bands[..., place.flatten()] = blocks.detach().flatten(-3)
        return bands.unflatten(-1, (-1, n))
