"""Sparse matrices factorised by MKL's PARDISO, by way of pypardiso; an extra: ``pip install torchimplicit[pardiso]``."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from torchimplicit.linear.pattern import Pattern
from torchimplicit.linear.sparse_factors import Solve, SparseFactors

REAL_NONSYMMETRIC = 11  # as PARDISO numbers the kinds of matrices
# And its parameters, as they are by default (order by METIS, scale, match large entries to the diagonal) but for the tenth: pivots are
# enlarged below 1e-16 of the largest entry, in place of 1e-13, so that what is singular has a large inverse.
PARAMETERS = {1: 1, 2: 2, 10: 16, 11: 1, 13: 1}
ENLARGED = 14  # how many pivots were


class PARDISO(SparseFactors):
    """D A C = L U of real matrices, in double precision, by as many threads as MKL has.

    Source: Schenk and Gärtner, Solving unsymmetric sparse systems of linear equations with PARDISO, Future Generation Computer Systems
    20 (2004) 475-487.
    """

    title = "PARDISO"
    extra = "pypardiso", "pardiso"

    def __init__(self, values: Tensor, pattern: Pattern) -> None:
        if values.is_complex():
            raise TypeError(
                f"PARDISO takes real matrices, by pypardiso; this one is {values.dtype}. Take SparseLU('umfpack') or SparseLU()."
            )
        super().__init__(values, pattern)

    def _factorised(self, values: Tensor) -> Solve:
        import numpy as np
        from pypardiso import PyPardisoSolver
        from pypardiso.pardiso_wrapper import PyPardisoError

        matrix = self._by_columns(values.to(torch.float64)).tocsr()
        solver = PyPardisoSolver(mtype=REAL_NONSYMMETRIC)
        for number, value in PARAMETERS.items():
            solver.set_iparm(number, value)
        try:
            solver.factorize(matrix)
        except (PyPardisoError, ValueError) as error:  # the second of rows without entries
            raise ArithmeticError("the matrix has no factors") from error
        if len(values) > 1 and solver.get_iparm(ENLARGED):
            solver.free_memory(everything=True)
            raise ArithmeticError("one of the matrices is singular, and which is not known")

        def solve(columns: Any, adjoint: bool) -> Any:
            b = np.asfortranarray(columns, dtype=np.float64)
            return solver.solve(matrix.T if adjoint else matrix, b)  # it sees that the entries are the same

        weakref.finalize(solve, solver.free_memory, everything=True)
        return solve
