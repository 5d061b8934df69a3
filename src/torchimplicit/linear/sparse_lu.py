"""Sparse matrices by their factors, made by the library that fits, or by one that is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torchimplicit.linear.direct import Direct, Flipped
from torchimplicit.linear.entries import entries_of
from torchimplicit.linear.factors import square
from torchimplicit.linear.operators import ConjugateTranspose, LinearOperator
from torchimplicit.linear.pardiso import PARDISO
from torchimplicit.linear.sparse_factors import SparseFactors, installed
from torchimplicit.linear.suitesparse import CHOLMOD, KLU, UMFPACK
from torchimplicit.linear.superlu import SuperLU


@dataclass(frozen=True)
class SparseLU:
    """LU factors of a sparse matrix, which serve A and Aᴴ.

    Attributes:
        library: "superlu", SciPy's; "umfpack", with fewer entries in the factors of meshes in space, or "klu", for circuits: both by
            kvxopt (``pip install torchimplicit[suitesparse]``); or "pardiso", MKL's, with threads, for large real matrices, of
            meshes in space above all: by pypardiso (``pip install torchimplicit[pardiso]``).

    ``linear_solve`` of a sparse matrix, and Newton's method with ``sparsity=``, take factors by themselves where these are small;
    with kvxopt those of CHOLMOD, where a matrix is definite. This asks for them, whatever their size.
    """

    library: Literal["superlu", "umfpack", "klu", "pardiso"] = "superlu"

    def __post_init__(self) -> None:
        if self.library not in _LIBRARIES:
            raise ValueError(
                f"SparseLU: library is {self.library!r}; expected one of {', '.join(map(repr, _LIBRARIES))}."
            )

    def factorize(self, operator: LinearOperator) -> Direct:
        """The factors of a :class:`Sparse` operator, or of a Jacobian whose pattern is known (``sparsity=``).

        Raises:
            ImportError: the library is not installed.
            TypeError: the entries are not at hand, not on the CPU, recorded by autograd, or complex, for PARDISO.
            ValueError: the operator is not square.
        """
        return _factorised(self, operator, _LIBRARIES[self.library])


@dataclass(frozen=True)
class SparseCholesky:
    """Cholesky factors of a sparse matrix that is Hermitian positive definite, by CHOLMOD; any other counts as singular.

    Needs kvxopt (``pip install torchimplicit[suitesparse]``). Raises as :class:`SparseLU` does.
    """

    def factorize(self, operator: LinearOperator) -> Direct:
        """The factors, of a Sparse operator or a Jacobian whose pattern is known."""
        return _factorised(self, operator, CHOLMOD)


_LIBRARIES: dict[str, type[SparseFactors]] = {"superlu": SuperLU, "umfpack": UMFPACK, "klu": KLU, "pardiso": PARDISO}


def _factorised(solver: SparseLU | SparseCholesky, operator: LinearOperator, factors: type[SparseFactors]) -> Direct:
    name = type(solver).__name__
    square(operator, name)
    package, extra = factors.extra
    if not installed(package):
        raise ImportError(f"{name}: {factors.title} comes with {package}: pip install torchimplicit[{extra}]")
    if isinstance(operator, ConjugateTranspose):
        return Flipped(_factorised(solver, operator.operator, factors))
    matrix = entries_of(operator, name)
    return factors(matrix.values, matrix.pattern)
