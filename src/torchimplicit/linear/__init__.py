"""Linear operators, and solvers for A x = b that serve A and its adjoint from one factorisation."""

from torchimplicit.linear.amg import AMG as AMG
from torchimplicit.linear.auto import Auto as Auto
from torchimplicit.linear.bands import Banded as Banded
from torchimplicit.linear.bands import tridiagonal as tridiagonal
from torchimplicit.linear.bicgstab import BiCGStab as BiCGStab
from torchimplicit.linear.block_diagonal import BlockDiagonal as BlockDiagonal
from torchimplicit.linear.block_tridiagonal import BlockTridiagonal as BlockTridiagonal
from torchimplicit.linear.cg import CG as CG
from torchimplicit.linear.cholesky import Cholesky as Cholesky
from torchimplicit.linear.contraction import Contraction as Contraction
from torchimplicit.linear.conversion import as_operator as as_operator
from torchimplicit.linear.dense import Dense as Dense
from torchimplicit.linear.diagonal import Diagonal as Diagonal
from torchimplicit.linear.gmres import GMRES as GMRES
from torchimplicit.linear.ilu import ILU as ILU
from torchimplicit.linear.iteration import Geometry as Geometry
from torchimplicit.linear.jacobi import Jacobi as Jacobi
from torchimplicit.linear.jacobian import Jacobian as Jacobian
from torchimplicit.linear.kronecker import Kronecker as Kronecker
from torchimplicit.linear.lagged import Lagged as Lagged
from torchimplicit.linear.large import Large as Large
from torchimplicit.linear.low_rank import LowRankUpdate as LowRankUpdate
from torchimplicit.linear.lsmr import LSMR as LSMR
from torchimplicit.linear.lu import LU as LU
from torchimplicit.linear.matrix_free import MatrixFree as MatrixFree
from torchimplicit.linear.memory import Memory as Memory
from torchimplicit.linear.memory import PatternWarning as PatternWarning
from torchimplicit.linear.minres import MINRES as MINRES
from torchimplicit.linear.neumann import Neumann as Neumann
from torchimplicit.linear.operators import Inverse as Inverse
from torchimplicit.linear.operators import LinearOperator as LinearOperator
from torchimplicit.linear.operators import Product as Product
from torchimplicit.linear.operators import Scaled as Scaled
from torchimplicit.linear.operators import Sum as Sum
from torchimplicit.linear.pattern import Pattern as Pattern
from torchimplicit.linear.qr import QR as QR
from torchimplicit.linear.represented import Represented as Represented
from torchimplicit.linear.richardson import Richardson as Richardson
from torchimplicit.linear.solver import LinearResult as LinearResult
from torchimplicit.linear.solver import is_linear_solver as _is_linear_solver
from torchimplicit.linear.solver import written as _written
from torchimplicit.linear.sparse import Sparse as Sparse
from torchimplicit.linear.sparse_lu import SparseCholesky as SparseCholesky
from torchimplicit.linear.sparse_lu import SparseLU as SparseLU
from torchimplicit.linear.svd import SVD as SVD
from torchimplicit.linear.triangular import Triangular as Triangular
from torchimplicit.parameters import name_parameters as _name_parameters

__all__ = sorted(name for name, each in globals().items() if callable(each) and not name.startswith("_"))

PRECONDITIONERS = {
    each.__name__: each for each in (AMG, ILU, Jacobi, Lagged)
}  # nearly inverses, not solvers by themselves
SOLVERS = {
    name: globals()[name] for name in __all__ if hasattr(globals()[name], "factorize") and name not in PRECONDITIONERS
}


def check_linear_solver(name: str, solver: object) -> None:
    """Raise TypeError unless the parameter of that name is None or a linear solver."""
    if solver is not None and not _is_linear_solver(solver):
        raise TypeError(
            f"{name} must be an object with factorize(operator); got {solver!r}."
            + (" Call the class." if isinstance(solver, type) else "")
            + f" Of torchimplicit.linear: {', '.join(map(_written, SOLVERS.values()))}."
        )


_name_parameters(globals())
