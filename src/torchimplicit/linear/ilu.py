"""Incomplete factors of sparse matrices, by SciPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from torchimplicit.linear.best_factors import definite
from torchimplicit.linear.entries import entries_of
from torchimplicit.linear.factors import square
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.pattern import Pattern
from torchimplicit.linear.solver import Preconditioner
from torchimplicit.linear.sparse_factors import Solve, SparseFactors, symmetric_scales


@dataclass(frozen=True)
class ILU:
    """Incomplete LU factors of a sparse matrix as a preconditioner.

    Of a matrix that is Hermitian, with a diagonal of one sign, the Hermitian part of their inverse, in a symmetric order: it serves CG
    as incomplete Cholesky factors would. Of any other they are for GMRES and BiCGStab.

    Attributes:
        drop: entries of the factors that are smaller, in parts of their column, are left out.
        fill: the factors have at most so many times as many entries as the matrix.

    Of a matrix that has no such factors only the scales of its rows and columns are taken. Needs SciPy.
    Source: Li and Shao, A supernodal approach to incomplete LU factorization with partial pivoting, ACM Trans. Math. Softw. 37 (2011).
    """

    drop: float = 1e-3
    fill: float = 5.0

    def factorize(self, operator: LinearOperator) -> Preconditioner:
        """The factors of a Sparse operator, or of a Jacobian whose pattern is known; raises as :class:`SparseLU` does."""
        matrix = entries_of(square(operator, "ILU"), "ILU")
        kind = HermitianPart if definite(matrix.values, matrix.pattern) else IncompleteFactors
        return kind(matrix.values, matrix.pattern, self)


class IncompleteFactors(SparseFactors):
    """About D A C = L U."""

    title, final = "incomplete LU", False
    order: ClassVar[dict[str, Any]] = {}

    def __init__(self, values: Tensor, pattern: Pattern, how: ILU) -> None:
        self.how = how
        super().__init__(values, pattern)

    def _factorised(self, values: Tensor) -> Solve:
        from scipy.sparse.linalg import spilu

        factors = spilu(self._by_columns(values), drop_tol=self.how.drop, fill_factor=self.how.fill, **self.order)

        def solve(columns: Any, adjoint: bool) -> Any:
            return factors.solve(columns, "H" if adjoint else "N")

        return solve

    def _unsolved(self, b: Tensor) -> Tensor:
        return b.clone()


class HermitianPart(IncompleteFactors):
    """½ (M + Mᴴ) with M the inverse of about D A D = L U. Entries are dropped column by column, which leaves M itself so far from
    Hermitian that CG may not converge."""

    order: ClassVar[dict[str, Any]] = {
        "permc_spec": "MMD_AT_PLUS_A",
        "diag_pivot_thresh": 0.0,
        "options": {"SymmetricMode": True},
    }

    def _scales(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return symmetric_scales(values, self.pattern)

    def _solve(self, b: Tensor, adjoint: bool) -> Tensor:
        return (super()._solve(b, False) + super()._solve(b, True)) / 2
