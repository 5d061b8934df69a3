"""How gradients come back: implicitly (the default), through the steps, or approximately."""

from typing import Protocol

from torch import Tensor

from torchimplicit.adjoints.gauss_newton import GaussNewton
from torchimplicit.adjoints.implicit import Implicit
from torchimplicit.adjoints.one_step import OneStep
from torchimplicit.adjoints.phantom import Phantom
from torchimplicit.adjoints.shine import SHINE
from torchimplicit.adjoints.unrolled import Unrolled
from torchimplicit.parameters import name_parameters
from torchimplicit.problem import Problem
from torchimplicit.solution import Solution


class Adjoint(Protocol):
    """A way to differentiate the solution of a problem."""

    def run(self, problem: Problem, z0: Tensor) -> Solution:
        """Solve from z0 (B, n), and attach the derivative."""
        ...


__all__ = ["SHINE", "Adjoint", "GaussNewton", "Implicit", "OneStep", "Phantom", "Unrolled"]

name_parameters(globals())
