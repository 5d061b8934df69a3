"""Algebraic multigrid as a preconditioner that is asked for by name."""

from __future__ import annotations

from dataclasses import dataclass

from torchimplicit.linear.entries import entries_of
from torchimplicit.linear.factors import square
from torchimplicit.linear.multigrid import multigrid_of
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.solver import Preconditioner


@dataclass(frozen=True)
class AMG:
    """Algebraic multigrid (Ruge and Stüben's) of a sparse matrix as a preconditioner: for meshes, and M-matrices altogether.

    Needs PyAMG (``pip install torchimplicit[amg]``). Works in double precision, on real matrices.
    """

    def factorize(self, operator: LinearOperator) -> Preconditioner:
        """The hierarchy of a Sparse operator, or of a Jacobian whose pattern is known.

        Raises:
            ImportError: PyAMG is not installed.
            TypeError: as :class:`SparseLU` does, and for complex matrices.
            ValueError: the operator is not square.
        """
        if operator.dtype.is_complex:
            raise TypeError("AMG is for real matrices; take linear.ILU() or linear.SparseLU() for this one.")
        found = multigrid_of(entries_of(square(operator, "AMG"), "AMG"))
        if found is None:
            raise ImportError("AMG needs PyAMG: pip install torchimplicit[amg]")
        return found
