"""The solvers by name, so that a new one is tested wherever it can be asked."""

from __future__ import annotations

import torchimplicit as ti

ONE_UNKNOWN = "it shrinks an interval: each system is one equation in one unknown"
DOWNHILL = "it goes down an objective, and a root or a fixed point has none"
BOUNDED = "it holds unknowns at bounds, and a root or a fixed point has none"
CONSTRAINED = "it meets constraints, and a root or a fixed point has none"

# Solvers that do not take just any system of n equations in n unknowns, and why.
PARTICULAR = {
    "bisection": ONE_UNKNOWN,
    "chandrupatla": ONE_UNKNOWN,
    "itp": ONE_UNKNOWN,
    "lbfgs": DOWNHILL,
    "bfgs": DOWNHILL,
    "nonlinear_cg": DOWNHILL,
    "trust_newton": DOWNHILL,
    "newton_cg": DOWNHILL,
    "projected_newton": DOWNHILL,
    "active_set": BOUNDED,
    "interior_point": BOUNDED,
    "augmented_lagrangian": CONSTRAINED,
}

GENERAL = [name for name in ti.solvers.NAMES if name not in PARTICULAR]
