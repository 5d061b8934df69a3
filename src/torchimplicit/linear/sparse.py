"""Sparse matrices in torch's COO and CSR layouts."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.linear.operators import LinearOperator


class Sparse(LinearOperator):
    """A sparse matrix: a 2-D torch tensor of COO or CSR layout, shape (m, n).

    Products gather and scatter the stored entries (out of place), which holds under every transform and gives each
    stored entry its gradient, never a dense (m, n) one.

    Raises:
        ValueError: another layout, more than two dimensions, or an integer dtype.
    """

    leading = True

    def __init__(self, A: Tensor, symmetric: bool = False, positive_definite: bool = False) -> None:
        if A.layout not in (torch.sparse_coo, torch.sparse_csr) or A.ndim != 2 or A.dense_dim() != 0:
            raise ValueError(
                f"Sparse got a {A.ndim}-D tensor of layout {A.layout} and shape {tuple(A.shape)}; expected a 2-D "
                "COO or CSR tensor (convert with .to_sparse_coo(), or describe a batch as a block-diagonal matrix)"
            )
        if not (A.is_floating_point() or A.is_complex()):
            raise ValueError(f"Sparse got dtype {A.dtype}; expected a floating or complex dtype")
        super().__init__(A.shape, A.dtype, A.device, symmetric=symmetric, positive_definite=positive_definite)
        if A.layout == torch.sparse_csr:
            per_row = A.crow_indices().diff()
            self.rows = torch.arange(A.shape[0], device=A.device).repeat_interleave(per_row)
            self.columns = A.col_indices().long()
            self.values = A.values().clone()  # a view of a CSR tensor cannot be conjugated
        else:
            A = A.coalesce()
            self.rows, self.columns = A.indices()
            self.values = A.values()

    def matvec(self, x: Tensor) -> Tensor:
        return self._scatter(self.values * x[..., self.columns], self.rows, self.shape[0])

    def rmatvec(self, y: Tensor) -> Tensor:
        return self._scatter(self.values.conj() * y[..., self.rows], self.columns, self.shape[1])

    def _scatter(self, products: Tensor, index: Tensor, size: int) -> Tensor:
        zeros = torch.zeros((*products.shape[:-1], size), dtype=self.dtype, device=self.device)
        return zeros.index_add(-1, index, products)

    def to_dense(self) -> Tensor:
        zeros = torch.zeros(tuple(self.shape), dtype=self.dtype, device=self.device)
        return zeros.index_put((self.rows, self.columns), self.values, accumulate=True)
