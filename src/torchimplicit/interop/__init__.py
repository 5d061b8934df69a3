"""Other people's solvers as forward solvers, any optimiser of ``torch.optim``, any method of SciPy, those of qpsolvers, Clarabel
and Moreau for programs; and problems of cvxpy as layers."""

from torchimplicit.interop.cvxpy_layer import cvxpy
from torchimplicit.interop.quadratic_solvers import qpsolvers
from torchimplicit.interop.scipy_method import SciPy
from torchimplicit.interop.torch_optimizer import TorchOptimizer
from torchimplicit.programs.clarabel import Clarabel
from torchimplicit.programs.moreau import Moreau

__all__ = ["Clarabel", "Moreau", "SciPy", "TorchOptimizer", "cvxpy", "qpsolvers"]
