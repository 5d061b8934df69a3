"""Linear operators, and solvers for A x = b that serve A and its adjoint from one factorisation."""

from .auto import Auto
from .bicgstab import BiCGStab
from .cg import CG
from .cholesky import Cholesky
from .contraction import Contraction
from .conversion import as_operator
from .gmres import GMRES
from .iteration import Geometry, LinearResult
from .jacobian import Jacobian
from .lu import LU
from .neumann import Neumann
from .operators import Dense, Diagonal, LinearOperator, MatrixFree
from .qr import QR
from .richardson import Richardson
from .sparse import Sparse

__all__ = [
    "CG",
    "GMRES",
    "LU",
    "QR",
    "Auto",
    "BiCGStab",
    "Cholesky",
    "Contraction",
    "Dense",
    "Diagonal",
    "Geometry",
    "Jacobian",
    "LinearOperator",
    "LinearResult",
    "MatrixFree",
    "Neumann",
    "Richardson",
    "Sparse",
    "as_operator",
]
