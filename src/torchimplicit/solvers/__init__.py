"""How z* is found: one method a file, one protocol (init, step), one loop for all of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torchimplicit.parameters import name_parameters
from torchimplicit.solvers.active_set import ActiveSet as ActiveSet
from torchimplicit.solvers.anderson import Anderson as Anderson
from torchimplicit.solvers.augmented_lagrangian import AugmentedLagrangian as AugmentedLagrangian
from torchimplicit.solvers.auto import choose as choose
from torchimplicit.solvers.backtracking import Backtracking as Backtracking
from torchimplicit.solvers.bfgs import BFGS as BFGS
from torchimplicit.solvers.bisection import Bisection as Bisection
from torchimplicit.solvers.broyden import Broyden as Broyden
from torchimplicit.solvers.chandrupatla import Chandrupatla as Chandrupatla
from torchimplicit.solvers.chord import Chord as Chord
from torchimplicit.solvers.dogleg import Dogleg as Dogleg
from torchimplicit.solvers.equations import Equations as Equations
from torchimplicit.solvers.equations import Estimate as Estimate
from torchimplicit.solvers.gauss_newton import GaussNewton as GaussNewton
from torchimplicit.solvers.interior_point import InteriorPoint as InteriorPoint
from torchimplicit.solvers.itp import ITP as ITP
from torchimplicit.solvers.lbfgs import LBFGS as LBFGS
from torchimplicit.solvers.levenberg_marquardt import LevenbergMarquardt as LevenbergMarquardt
from torchimplicit.solvers.method import Method as Method
from torchimplicit.solvers.method import adopted, is_method
from torchimplicit.solvers.newton import Newton as Newton
from torchimplicit.solvers.newton_cg import NewtonCG as NewtonCG
from torchimplicit.solvers.newton_krylov import NewtonKrylov as NewtonKrylov
from torchimplicit.solvers.nonlinear_cg import NonlinearCG as NonlinearCG
from torchimplicit.solvers.picard import Picard as Picard
from torchimplicit.solvers.polyalgorithm import Polyalgorithm as Polyalgorithm
from torchimplicit.solvers.projected_newton import ProjectedNewton as ProjectedNewton
from torchimplicit.solvers.pseudo_transient import PseudoTransient as PseudoTransient
from torchimplicit.solvers.trust_newton import TrustNewton as TrustNewton

if TYPE_CHECKING:
    from torchimplicit.condition import Kind
    from torchimplicit.layout import Layout


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


NAMES: dict[str, type[Method]] = {
    _snake(each.__name__): each
    for each in list(globals().values())
    if isinstance(each, type) and issubclass(each, Method) and each is not Method
}

name_parameters(globals())


def resolve(
    solver: str | Method | Polyalgorithm | None, kind: Kind, layout: Layout, sparse: bool = False
) -> Method | Polyalgorithm:
    """The solver that was named or given, or the one that is chosen (None, "auto"). Newton's method with ``sparse`` Jacobians is the
    one that solves its systems iteratively.

    Raises TypeError where it is none, or cannot judge the multipliers of constraints.
    """
    found = _resolved(solver, kind, layout, sparse)
    if kind.constrained and not isinstance(found, AugmentedLagrangian):
        raise TypeError(
            f"solver={solver!r} does not judge the multipliers of constraints=: where it ends, the constraints may not be met. Use "
            "'augmented_lagrangian', the default."
        )
    return found


def _resolved(
    solver: str | Method | Polyalgorithm | None, kind: Kind, layout: Layout, sparse: bool
) -> Method | Polyalgorithm:
    if solver is None or solver == "auto":
        return choose(kind, layout, sparse)
    if solver == "newton" and sparse:
        return NewtonKrylov()
    if isinstance(solver, str):
        if solver not in NAMES:
            raise ValueError(f'there is no solver {solver!r}; the names are "auto", {", ".join(map(repr, NAMES))}.')
        return NAMES[solver]()
    if isinstance(solver, Polyalgorithm):
        return solver
    if not is_method(solver):
        raise TypeError(
            f"solver must be a name or an object of torchimplicit.solvers with init, step, max_steps and patience; got {solver!r}."
            + (" Call the class: solvers.Newton()." if isinstance(solver, type) else "")
        )
    return adopted(solver)


__all__ = [
    "choose",
    "resolve",
    *sorted(name for name, each in globals().items() if isinstance(each, type)),
]
