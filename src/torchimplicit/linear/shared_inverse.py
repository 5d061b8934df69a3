"""The inverse of one batch of matrices, for the rows of a flat batch of systems that share them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchimplicit.linear.direct import Direct
from torchimplicit.linear.solver import Preconditioner


class SharedInverse:
    """Factors, or an approximate inverse, for vectors (..., R, n) of which row r belongs to the matrix ``which[r]``.

    state : solves (*lead, *batch_shape, n). Complex vectors come as twice as many reals.
    """

    def __init__(self, state: Preconditioner, batch_shape: Sequence[int], which: Tensor, is_complex: bool) -> None:
        self.state, self.batch_shape, self.which, self.is_complex = state, tuple(batch_shape), which, is_complex

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """x with A x = b, or Aᴴ x = b. Where there are more rows, all of them stand there several times."""
        if b.shape[-2] != len(self.which):
            return self.solve(b.unflatten(-2, (-1, len(self.which))), adjoint).flatten(-3, -2)
        if self.is_complex:
            x = self._solve(torch.view_as_complex(b.unflatten(-1, (-1, 2)).contiguous()), adjoint)
            return torch.view_as_real(x.resolve_conj()).flatten(-2)
        return self._solve(b, adjoint)

    def _solve(self, b: Tensor, adjoint: bool) -> Tensor:
        """Right-hand sides of the same matrix stand beside each other, as leading dimensions."""
        matrices = max(1, torch.Size(self.batch_shape).numel())
        if matrices == 1:
            x = self.state.solve(b.reshape(*b.shape[:-1], *self.batch_shape, b.shape[-1]), adjoint)
            return x.reshape(b.shape)
        order = torch.argsort(self.which, stable=True)
        by_matrix = b.index_select(-2, order).unflatten(-2, (matrices, -1)).movedim(-2, 0)
        x = self.state.solve(by_matrix.unflatten(-2, self.batch_shape), adjoint).flatten(-1 - len(self.batch_shape), -2)
        x = x.movedim(0, -2).flatten(-3, -2)
        return torch.empty_like(x).index_copy(-2, order, x)


class SharedFactors(SharedInverse):
    """What a forward solve has left: factors of the very matrix, and not of one nearby."""

    def __init__(self, state: Direct, batch_shape: Sequence[int], which: Tensor, is_complex: bool) -> None:
        super().__init__(state, batch_shape, which, is_complex)
        self.factors = state

    def at(self, which: Tensor) -> SharedFactors:
        """The same for other rows."""
        return SharedFactors(self.factors, self.batch_shape, which, self.is_complex)

    @property
    def suspicious(self) -> Tensor:
        """Whether the matrix of each row may be singular, (R,)."""
        return self._of_rows(self.factors.suspicious)

    @property
    def singular(self) -> Tensor:
        """Whether it is."""
        return self._of_rows(self.factors.singular)

    def _of_rows(self, found: Tensor) -> Tensor:
        return found.expand(self.batch_shape).reshape(-1)[self.which]
