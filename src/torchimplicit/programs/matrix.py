"""The matrices of programs: dense, or sparse with entries in the same places for all systems."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchimplicit.linear.bilinear import multiply
from torchimplicit.linear.pattern import Pattern
from torchimplicit.linear.sparse import Sparse
from torchimplicit.linear.vectors import times


@dataclass(frozen=True)
class Matrix:
    """Matrices (..., m, n), or their entries (..., e) in the places of a ``pattern``."""

    values: Tensor
    pattern: Pattern | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        if self.pattern is None:
            return self.values.shape[-2], self.values.shape[-1]
        return self.pattern.m, self.pattern.n

    @property
    def core(self) -> int:
        """How many dimensions of the values follow those of the batch."""
        return 2 if self.pattern is None else 1

    def of(self, values: Tensor) -> Matrix:
        """Others in the same places."""
        return Matrix(values, self.pattern)

    def times(self, x: Tensor) -> Tensor:
        """The products with vectors (..., n)."""
        return times(self.values, x) if self.pattern is None else multiply(self.pattern, self._expanded(x), x)

    def transposed(self, y: Tensor) -> Tensor:
        """The products of the transposed matrices with vectors (..., m)."""
        if self.pattern is None:
            return times(self.values.mT, y)
        return multiply(self.pattern, self._expanded(y), y, adjoint=True)

    def _expanded(self, x: Tensor) -> Tensor:
        """The entries, for as many matrices as there are vectors, unless one matrix serves all."""
        return self.values if self.values.ndim == 1 else self.values.expand(*x.shape[:-1], self.values.shape[-1])

    def or_identity(self, which: Tensor) -> Matrix:
        """The identity in the place of some square matrices, (B,); a pattern has to have the diagonal."""
        if self.pattern is None:
            eye = torch.eye(self.shape[-1], dtype=self.values.dtype, device=self.values.device)
            return Matrix(torch.where(which[:, None, None], eye, self.values))
        eye = (self.pattern.rows == self.pattern.columns).to(self.values)
        return self.of(torch.where(which.unsqueeze(-1), eye, self.values))

    def symmetrised(self) -> Matrix:
        """The symmetric parts."""
        if self.pattern is None:
            return Matrix((self.values + self.values.mT) / 2)
        n, half = self.pattern.n, self.values / 2
        rows, columns = self.pattern.rows, self.pattern.columns
        key, place = torch.cat([rows * n + columns, columns * n + rows]).unique(return_inverse=True)
        sums = half.new_zeros(*half.shape[:-1], len(key)).index_add(-1, place, torch.cat([half, half], -1))
        return Matrix(sums, Pattern(key // n, key % n, n, n))

    def dense(self) -> Tensor:
        """(..., m, n)."""
        return self.values if self.pattern is None else Sparse(self.values, self.pattern).to_dense()

    def largest(self) -> Tensor:
        """The largest entry of each, detached: (..., 1)."""
        size = self.values.detach().abs()
        size = size if self.pattern is not None else size.flatten(-2)
        return size.amax(-1, keepdim=True) if size.shape[-1] else size.new_zeros(*size.shape[:-1], 1)

    def arrays(self, upper: bool = False) -> Iterator[Any]:
        """Those of all systems (B,) by columns, as SciPy has them, of the ``upper`` triangle of the symmetric part alone; one that all
        share is the same object."""
        from scipy.sparse import csc_matrix, triu

        shared = self.values.stride(0) == 0
        matrix = None
        for values in self.values.cpu().numpy():
            if matrix is None or not shared:
                entries: Any = values
                if self.pattern is not None:
                    entries = (values, (self.pattern.rows.cpu().numpy(), self.pattern.columns.cpu().numpy()))
                matrix = csc_matrix(entries, shape=self.shape)
                matrix = triu((matrix + matrix.T) / 2, format="csc") if upper else matrix
            yield matrix


def dense_or_sparse(value: Any, like: Tensor) -> Matrix | None:
    """A matrix from a dense tensor, a sparse one of two dimensions, or a sparse array of SciPy; None where it is none of these."""
    if isinstance(value, Tensor) and value.layout == torch.strided:
        return Matrix(value)
    if isinstance(value, Tensor):
        sparse = Sparse(value)
        return Matrix(sparse.values, sparse.pattern)
    if hasattr(value, "tocoo"):
        sparse = Sparse(value)
        return Matrix(sparse.values.to(like), sparse.pattern)
    return None
