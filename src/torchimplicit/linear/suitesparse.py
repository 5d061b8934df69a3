"""Sparse matrices factorised by SuiteSparse, by way of kvxopt; an extra: ``pip install torchimplicit[suitesparse]``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.linear.pattern import Pattern, places
from torchimplicit.linear.sparse_factors import Solve, SparseFactors, symmetric_scales

EXTRA = "kvxopt", "suitesparse"


class CHOLMOD(SparseFactors):
    """D A D = L Lᴴ for Hermitian positive definite matrices, of which the lower triangles are read; the others have no factors.

    In double precision, whatever that of the entries.
    Source: Chen, Davis, Hager and Rajamanickam, Algorithm 887: CHOLMOD, ACM Trans. Math. Softw. 35 (2008).
    """

    title = "CHOLMOD"
    extra = EXTRA

    def _scales(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return symmetric_scales(values, self.pattern)

    def _factorised(self, values: Tensor) -> Solve:
        import numpy as np
        from kvxopt import cholmod

        matrix = _spmatrix(values, self.pattern, self.pattern.rows >= self.pattern.columns)
        factors = cholmod.symbolic(matrix)
        cholmod.numeric(matrix, factors)
        try:
            diagonal = cholmod.diag(factors)
        except ValueError as error:
            raise ArithmeticError("the matrix is not definite") from error
        if len(values) == self.batch_shape.numel() == 1:  # of several the order is not known
            like = self.units[0]
            self.pivots = torch.from_numpy(np.array(diagonal).real).to(like.dtype).square().reshape(like.shape)
        return _in_place(lambda b, adjoint: cholmod.solve(factors, b), values)


class UMFPACK(SparseFactors):
    """D A C = L U by the multifrontal method, in double precision; each solution is refined.

    Source: Davis, Algorithm 832: UMFPACK, ACM Trans. Math. Softw. 30 (2004).
    """

    title = "UMFPACK"
    extra = EXTRA

    def _factorised(self, values: Tensor) -> Solve:
        from kvxopt import umfpack

        matrix = _spmatrix(values, self.pattern)
        factors = umfpack.numeric(matrix, umfpack.symbolic(matrix))
        return _in_place(lambda b, adjoint: umfpack.solve(matrix, factors, b, trans="C" if adjoint else "N"), values)


class KLU(SparseFactors):
    """D A C = L U, block by block of a triangular form: for circuits, whose factors have few entries; in double precision.

    Source: Davis and Palamadai Natarajan, Algorithm 907: KLU, ACM Trans. Math. Softw. 37 (2010).
    """

    title = "KLU"
    extra = EXTRA

    def _factorised(self, values: Tensor) -> Solve:
        from kvxopt import klu

        matrix = _spmatrix(values, self.pattern)
        order = klu.symbolic(matrix)
        factors = klu.numeric(matrix, order)
        return _in_place(lambda b, adjoint: klu.solve(matrix, order, factors, b, trans="C" if adjoint else "N"), values)


def _spmatrix(values: Tensor, pattern: Pattern, which: Tensor | None = None) -> Any:
    """k matrices with entries (k, e) as the blocks of one of kvxopt's; of all entries, or of some."""
    from kvxopt import spmatrix

    chosen = slice(None) if which is None else places(which)
    rows, columns = pattern.rows[chosen], pattern.columns[chosen]
    if len(values) > 1:
        each = torch.arange(len(values)).unsqueeze(-1) * pattern.n
        rows, columns = (rows + each).flatten(), (columns + each).flatten()
    size = len(values) * pattern.n
    return spmatrix(
        values[..., chosen].to(_double(values)).resolve_conj().flatten().numpy(),
        rows.numpy(),
        columns.numpy(),
        (size, size),
    )


def _in_place(solve: Any, values: Tensor) -> Solve:
    """``solve(b, adjoint)`` overwrites a matrix of kvxopt, of double precision like what it was made of."""
    import numpy as np
    from kvxopt import matrix

    kind = np.complex128 if values.is_complex() else np.float64

    def solved(columns: Any, adjoint: bool) -> Any:
        b = matrix(np.asarray(columns, dtype=kind))
        solve(b, adjoint)
        return np.array(b)

    return solved


def _double(values: Tensor) -> torch.dtype:
    return torch.complex128 if values.is_complex() else torch.float64
