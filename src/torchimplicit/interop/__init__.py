"""Other people's solvers as forward solvers: any optimiser of ``torch.optim``, any method of SciPy, those of qpsolvers for programs."""

from torchimplicit.interop.quadratic_solvers import qpsolvers
from torchimplicit.interop.scipy_method import SciPy
from torchimplicit.interop.torch_optimizer import TorchOptimizer
from torchimplicit.programs.clarabel import Clarabel

__all__ = ["Clarabel", "SciPy", "TorchOptimizer", "qpsolvers"]
