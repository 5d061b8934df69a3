"""Implicit layers for PyTorch: outputs defined by a condition g(z*, x) = 0, gradients by the implicit function theorem."""

from typing import TYPE_CHECKING

from torchimplicit import diagnostics, interop, linear, nn, projections, solvers
from torchimplicit.adjoints import SHINE, GaussNewton, Implicit, OneStep, Phantom, Unrolled
from torchimplicit.capture.calls import CaptureError
from torchimplicit.constraints import Constraints
from torchimplicit.problems.complementarity import complementarity
from torchimplicit.problems.cone_program import cone_program
from torchimplicit.problems.continuation import Branch, Continuation, continuation
from torchimplicit.problems.fixed_point import fixed_point
from torchimplicit.problems.implicit import implicit
from torchimplicit.problems.least_squares import least_squares
from torchimplicit.problems.linear_solve import linear_solve
from torchimplicit.problems.minimize import minimize
from torchimplicit.problems.multi_start import multi_start
from torchimplicit.problems.quadratic_program import quadratic_program
from torchimplicit.problems.root import root
from torchimplicit.programs.cones import Cones
from torchimplicit.solution import Solution, SolveInfo
from torchimplicit.status import ConvergenceError, ConvergenceWarning, Status

if TYPE_CHECKING:
    __version__: str


def __getattr__(name: str) -> str:
    if name == "__version__":  # looked up when asked for: few do, and that takes longer than the rest of an import
        from importlib import metadata

        return metadata.version("torchimplicit")
    raise AttributeError(f"module 'torchimplicit' has no attribute {name!r}")


__all__ = [
    "SHINE",
    "Branch",
    "CaptureError",
    "Cones",
    "Constraints",
    "Continuation",
    "ConvergenceError",
    "ConvergenceWarning",
    "GaussNewton",
    "Implicit",
    "OneStep",
    "Phantom",
    "Solution",
    "SolveInfo",
    "Status",
    "Unrolled",
    "complementarity",
    "cone_program",
    "continuation",
    "diagnostics",
    "fixed_point",
    "implicit",
    "interop",
    "least_squares",
    "linear",
    "linear_solve",
    "minimize",
    "multi_start",
    "nn",
    "projections",
    "quadratic_program",
    "root",
    "solvers",
]
