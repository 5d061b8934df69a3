"""Sparse matrices in torch's COO and CSR layouts, and SciPy's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import tracing
from torchimplicit.linear.bands import Banded
from torchimplicit.linear.best_factors import best_factors
from torchimplicit.linear.bilinear import multiply
from torchimplicit.linear.block_tridiagonal import BlockTridiagonal
from torchimplicit.linear.direct import Direct
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.pattern import NARROW, Pattern
from torchimplicit.linear.superlu import usable


class Sparse(LinearOperator):
    """Sparse matrices, one, or a batch with entries in the same places.

    Args:
        A: a 2-D COO or CSR tensor of shape (m, n), or a sparse matrix of SciPy; or with a ``pattern`` the entries of a batch,
            (*batch_shape, e), in its places.
        symmetric, positive_definite: promises.

    The gradient of a product reaches the stored entries alone, never a dense (m, n) matrix. The transposed places are found
    once, so that Aᴴ y takes as long as A x.

    Square systems are solved within their band where that is narrow, as a :class:`torchimplicit.linear.BlockTridiagonal` where the
    pattern is that of a sequence, else by SuperLU (SciPy; on the CPU), or CHOLMOD if they are definite and kvxopt is installed, where
    the factors are known to stay small (:func:`torchimplicit.linear.superlu.factors_pay`).

    Raises:
        ValueError: another layout, more than two dimensions, or an integer dtype.
    """

    explicit = True
    leading = True
    parts = ("A",)
    options = ("pattern", "symmetric", "positive_definite")

    def __init__(
        self, A: Any, pattern: Pattern | None = None, symmetric: bool = False, positive_definite: bool = False
    ) -> None:
        if pattern is None:
            A, pattern = _read(A)
        facts = {"symmetric": symmetric, "positive_definite": positive_definite}
        super().__init__((*A.shape[:-1], pattern.m, pattern.n), A.dtype, A.device, **facts)
        self.A, self.pattern = A, pattern

    @property
    def values(self) -> Tensor:
        """The stored entries, (*batch_shape, e)."""
        return self.A

    @property
    def rows(self) -> Tensor:
        """The row of each entry."""
        return self.pattern.rows

    @property
    def columns(self) -> Tensor:
        """The column of each entry."""
        return self.pattern.columns

    def matvec(self, x: Tensor) -> Tensor:
        if tracing():
            return self._scattered(self.values * x[..., self.columns], self.rows, self.shape[-2])
        return multiply(self.pattern, self.values, x)

    def rmatvec(self, y: Tensor) -> Tensor:
        if tracing():
            return self._scattered(self.values.conj() * y[..., self.rows], self.columns, self.shape[-1])
        return multiply(self.pattern, self.values, y, adjoint=True)

    def _scattered(self, products: Tensor, index: Tensor, size: int) -> Tensor:
        zeros = torch.zeros((*products.shape[:-1], size), dtype=self.dtype, device=self.device)
        return zeros.index_add(-1, index, products)

    def to_dense(self) -> Tensor:
        m, n = self.shape[-2:]
        zeros = torch.zeros((*self.batch_shape, m * n), dtype=self.dtype, device=self.device)
        return zeros.index_add(-1, self.rows * n + self.columns, self.values).unflatten(-1, (m, n))

    def direct(self) -> Direct | None:
        if self.shape[-1] != self.shape[-2]:
            return None
        if sum(self.pattern.bandwidths) < min(NARROW, self.shape[-1] / 2):
            return self._banded().direct()
        if self.pattern.chain:
            return self._chain().direct()
        return best_factors(self.values, self.pattern) if usable(self.values, self.pattern) else None

    def _banded(self) -> Banded:
        lower, upper = self.pattern.bandwidths
        n = self.shape[-1]
        place = (upper + self.rows - self.columns) * n + self.columns
        zeros = torch.zeros((*self.batch_shape, (lower + upper + 1) * n), dtype=self.dtype, device=self.device)
        bands = zeros.index_add(-1, place, self.values).unflatten(-1, (-1, n))
        return Banded(bands, lower, upper)

    def _chain(self) -> BlockTridiagonal:
        """As blocks, those on the other side left out where all of them are on one."""
        p = self.pattern.chain
        row, column = self.rows // p, self.columns // p
        N = self.shape[-1] // p
        place = (self.rows % p) * p + self.columns % p + torch.minimum(row, column) * p * p
        blocks = []
        for side in (-1, 0, 1):
            here = column - row == side
            zeros = torch.zeros((*self.batch_shape, (N - abs(side)) * p * p), dtype=self.dtype, device=self.device)
            filled = zeros.index_add(-1, place[here], self.values[..., here])
            blocks.append(filled.unflatten(-1, (N - abs(side), p, p)))
        return BlockTridiagonal(*blocks)


def _read(A: Any) -> tuple[Tensor, Pattern]:
    """The entries of a matrix, and their places."""
    if hasattr(A, "tocoo"):  # SciPy's
        A = A.tocoo()
        index = torch.stack([torch.as_tensor(i, dtype=torch.int64) for i in (A.row, A.col)])
        A = torch.sparse_coo_tensor(index, torch.as_tensor(A.data), A.shape, check_invariants=True)
    if A.layout not in (torch.sparse_coo, torch.sparse_csr) or A.ndim != 2 or A.dense_dim() != 0:
        raise ValueError(
            f"Sparse got a {A.ndim}-D tensor of layout {A.layout} and shape {tuple(A.shape)}; expected a 2-D "
            "COO or CSR tensor (convert with .to_sparse_coo()); for a batch give the entries (*batch, e) and pattern="
        )
    if not (A.is_floating_point() or A.is_complex()):
        raise ValueError(f"Sparse got dtype {A.dtype}; expected a floating or complex dtype")
    m, n = A.shape
    if A.layout == torch.sparse_csr:
        per_row = A.crow_indices().diff()
        rows = torch.arange(m, device=A.device).repeat_interleave(per_row)
        return A.values().clone(), Pattern(rows, A.col_indices().long(), m, n)  # a view of it cannot be conjugated
    A = A.coalesce()
    rows, columns = A.indices()
    return A.values(), Pattern(rows, columns, m, n)
