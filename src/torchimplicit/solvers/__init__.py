"""How z* is found: one method a file, one protocol (init, step), one loop for all of them."""

from torchimplicit.solvers.anderson import Anderson
from torchimplicit.solvers.auto import choose
from torchimplicit.solvers.backtracking import Backtracking
from torchimplicit.solvers.bfgs import BFGS
from torchimplicit.solvers.bisection import Bisection
from torchimplicit.solvers.broyden import Broyden
from torchimplicit.solvers.chandrupatla import Chandrupatla
from torchimplicit.solvers.chord import Chord
from torchimplicit.solvers.dogleg import Dogleg
from torchimplicit.solvers.equations import Equations, Solver
from torchimplicit.solvers.gauss_newton import GaussNewton
from torchimplicit.solvers.itp import ITP
from torchimplicit.solvers.lbfgs import LBFGS
from torchimplicit.solvers.levenberg_marquardt import LevenbergMarquardt
from torchimplicit.solvers.newton import Newton
from torchimplicit.solvers.newton_cg import NewtonCG
from torchimplicit.solvers.newton_krylov import NewtonKrylov
from torchimplicit.solvers.nonlinear_cg import NonlinearCG
from torchimplicit.solvers.picard import Picard
from torchimplicit.solvers.polyalgorithm import Polyalgorithm
from torchimplicit.solvers.projected_newton import ProjectedNewton
from torchimplicit.solvers.pseudo_transient import PseudoTransient
from torchimplicit.solvers.trust_newton import TrustNewton

NAMES: dict[str, type] = {
    "newton": Newton,
    "chord": Chord,
    "newton_krylov": NewtonKrylov,
    "dogleg": Dogleg,
    "pseudo_transient": PseudoTransient,
    "broyden": Broyden,
    "anderson": Anderson,
    "picard": Picard,
    "lbfgs": LBFGS,
    "bfgs": BFGS,
    "nonlinear_cg": NonlinearCG,
    "trust_newton": TrustNewton,
    "newton_cg": NewtonCG,
    "projected_newton": ProjectedNewton,
    "bisection": Bisection,
    "chandrupatla": Chandrupatla,
    "itp": ITP,
    "gauss_newton": GaussNewton,
    "levenberg_marquardt": LevenbergMarquardt,
}


def resolve(
    solver: str | Solver | None,
    near_identity: bool,
    batch: int,
    n: int,
    minimised: bool = False,
    bounded: bool = False,
    sums_squares: bool = False,
) -> Solver:
    """The solver object that was asked for by name, as an object, or (None, "auto") not at all."""
    if solver is None or solver == "auto":
        return choose(near_identity, batch, n, minimised, bounded, sums_squares)
    if isinstance(solver, str):
        if solver not in NAMES:
            raise ValueError(f'there is no solver {solver!r}; the names are "auto", {", ".join(map(repr, NAMES))}.')
        found: Solver = NAMES[solver]()
        return found
    if isinstance(solver, type) or not all(hasattr(solver, part) for part in ("init", "step", "max_steps", "patience")):
        raise TypeError(
            f"solver must be a name or an object of torchimplicit.solvers with init, step, max_steps and patience; got {solver!r}."
            + (" Call the class: solvers.Newton()." if isinstance(solver, type) else "")
        )
    return solver


__all__ = [
    "BFGS",
    "ITP",
    "LBFGS",
    "Anderson",
    "Backtracking",
    "Bisection",
    "Broyden",
    "Chandrupatla",
    "Chord",
    "Dogleg",
    "Equations",
    "GaussNewton",
    "LevenbergMarquardt",
    "Newton",
    "NewtonCG",
    "NewtonKrylov",
    "NonlinearCG",
    "Picard",
    "Polyalgorithm",
    "ProjectedNewton",
    "PseudoTransient",
    "Solver",
    "TrustNewton",
    "choose",
    "resolve",
]
