"""Sparse matrices factorised by SciPy's SuperLU."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torchimplicit.linear.lapack import available
from torchimplicit.linear.pattern import Pattern
from torchimplicit.linear.sparse_factors import Solve, SparseFactors

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


class SuperLU(SparseFactors):
    """D A C = L U.

    Where the pattern is symmetric its own order of least degree serves, and diagonal entries are preferred as pivots; otherwise
    that of AᵀA (COLAMD), with partial pivoting.
    Source: Demmel, Eisenstat, Gilbert, Li and Liu, SIAM J. Matrix Anal. Appl. 20 (1999) 720-755.
    """

    title = "SuperLU"

    def _factorised(self, values: Tensor) -> Solve:
        from scipy.sparse.linalg import splu

        matrix = self._by_columns(values)
        if self.pattern.symmetric:
            factors = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=DIAGONAL)
        else:
            factors = splu(matrix)

        def solve(columns: Any, adjoint: bool) -> Any:
            return factors.solve(columns, "H" if adjoint else "N")

        return solve
