"""Linear operators, and solvers for A x = b that serve A and its adjoint from one factorisation."""

from torchimplicit.linear.auto import Auto
from torchimplicit.linear.bands import Banded, tridiagonal
from torchimplicit.linear.bicgstab import BiCGStab
from torchimplicit.linear.block_diagonal import BlockDiagonal
from torchimplicit.linear.block_tridiagonal import BlockTridiagonal
from torchimplicit.linear.cg import CG
from torchimplicit.linear.cholesky import Cholesky
from torchimplicit.linear.contraction import Contraction
from torchimplicit.linear.conversion import as_operator
from torchimplicit.linear.dense import Dense
from torchimplicit.linear.diagonal import Diagonal
from torchimplicit.linear.gmres import GMRES
from torchimplicit.linear.iteration import Geometry
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.kronecker import Kronecker
from torchimplicit.linear.large import Large
from torchimplicit.linear.low_rank import LowRankUpdate
from torchimplicit.linear.lu import LU
from torchimplicit.linear.matrix_free import MatrixFree
from torchimplicit.linear.memory import Memory, PatternWarning
from torchimplicit.linear.minres import MINRES
from torchimplicit.linear.neumann import Neumann
from torchimplicit.linear.operators import Inverse, LinearOperator, Product, Scaled, Sum
from torchimplicit.linear.pattern import Pattern
from torchimplicit.linear.qr import QR
from torchimplicit.linear.richardson import Richardson
from torchimplicit.linear.solver import LinearResult
from torchimplicit.linear.sparse import Sparse
from torchimplicit.linear.sparse_lu import SparseCholesky, SparseLU
from torchimplicit.linear.svd import SVD
from torchimplicit.linear.triangular import Triangular

__all__ = [
    "CG",
    "GMRES",
    "LU",
    "MINRES",
    "QR",
    "SVD",
    "Auto",
    "Banded",
    "BiCGStab",
    "BlockDiagonal",
    "BlockTridiagonal",
    "Cholesky",
    "Contraction",
    "Dense",
    "Diagonal",
    "Geometry",
    "Inverse",
    "Jacobian",
    "Kronecker",
    "Large",
    "LinearOperator",
    "LinearResult",
    "LowRankUpdate",
    "MatrixFree",
    "Memory",
    "Neumann",
    "Pattern",
    "PatternWarning",
    "Product",
    "Richardson",
    "Scaled",
    "Sparse",
    "SparseCholesky",
    "SparseLU",
    "Sum",
    "Triangular",
    "as_operator",
    "tridiagonal",
]
