"""Sparse matrices factorised by SciPy's SuperLU."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from torchimplicit.linear.estimated import Estimated
from torchimplicit.linear.external import applied
from torchimplicit.linear.lapack import available
from torchimplicit.linear.pattern import Pattern
from torchimplicit.linear.vectors import fit
from torchimplicit.norms import inverse_power_of_two

WORK = (
    2**34
)  # multiplications within the band of a matrix, in the best order that is found at once, up to which its factors are small
DIAGONAL = 0.01  # of the largest entry of its column: a diagonal entry that is as large is taken for pivot in a symmetric pattern


def usable(values: Tensor, pattern: Pattern) -> bool:
    """Whether SuperLU can and should factorise: square matrices on the CPU, not differentiated, and factors that stay small."""
    return pattern.m == pattern.n and available(values) and factors_pay(pattern)


def factors_pay(pattern: Pattern) -> bool:
    """Whether elimination within the band of the matrix in the order of Cuthill and McKee would be little work.

    SuperLU's orders need less, and seldom more: meshes in the plane up to some 10⁵ points pay, and in space up to 10⁴; graphs
    whose nodes are all near each other do not.
    """
    n = pattern.n
    return n**3 <= WORK or n * pattern.width**2 <= WORK


class SuperLU(Estimated):
    """D A C = L U for each matrix of the batch, all as the blocks of one: entries (*batch, e) in the places of a pattern.

    Where the pattern is symmetric its own order of least degree serves, and diagonal entries are preferred as pivots; otherwise
    that of AᵀA (COLAMD), with partial pivoting. A matrix that has no factors solves to NaN.
    Source: Demmel, Eisenstat, Gilbert, Li and Liu, SIAM J. Matrix Anal. Appl. 20 (1999) 720-755.
    """

    title, final = "SuperLU", True

    def __init__(self, values: Tensor, pattern: Pattern) -> None:
        self.batch_shape, self.pattern = values.shape[:-1], pattern
        values = values.detach()
        d = inverse_power_of_two(_largest(values.abs(), pattern.rows, pattern.m))
        values = values * d.index_select(-1, pattern.rows)
        c = inverse_power_of_two(_largest(values.abs(), pattern.columns, pattern.n))
        super().__init__(values.dtype, lambda: (d, c))
        values = (values * c.index_select(-1, pattern.columns)).reshape(-1, values.shape[-1])
        finite = values.isfinite().all(-1).nonzero().flatten()
        try:
            self._factors = [(finite, self._factorised(values[finite]))] if len(finite) else []
        except RuntimeError:  # one of them is exactly singular
            self._factors = []
            for at in finite.split(1):
                with suppress(RuntimeError):
                    self._factors.append((at, self._factorised(values[at])))

    def _factorised(self, values: Tensor) -> Any:
        from scipy.sparse import csc_array
        from scipy.sparse.linalg import splu

        k, pattern = len(values), self.pattern.transposed  # by columns
        starts, rows = (index.numpy() for index in pattern.blocks(k))
        entries = values.index_select(-1, self.pattern.order).resolve_conj().flatten().numpy()
        matrix = csc_array((entries, rows, starts), shape=(k * pattern.n, k * pattern.m))
        if self.pattern.symmetric:
            return splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=DIAGONAL)
        return splu(matrix)

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """x with A x = b, or Aᴴ x = b: (*lead, *batch, n). Differentiable in b."""
        return applied(self._solve, fit(b, self.batch_shape, self.pattern.n, self.dtype, name="b"), adjoint)

    def _solve(self, b: Tensor, adjoint: bool) -> Tensor:
        before, after = self.units[::-1] if adjoint else self.units
        shape = b.shape
        b = (before * b).reshape(-1, self.batch_shape.numel(), self.pattern.n)
        x = torch.full_like(b, torch.nan)
        for at, factors in self._factors:
            columns = b[:, at].flatten(1).resolve_conj().numpy().T
            x[:, at] = torch.from_numpy(factors.solve(columns, "H" if adjoint else "N").T).unflatten(1, (len(at), -1))
        return after * x.reshape(shape)


def _largest(size: Tensor, index: Tensor, n: int) -> Tensor:
    """The largest of the numbers (..., e) that belong to each row, or column, (..., n)."""
    zeros = torch.zeros(*size.shape[:-1], n, dtype=size.dtype)
    return zeros.scatter_reduce(-1, index.expand_as(size), size, "amax")
