"""The solver that is chosen when none is named."""

from __future__ import annotations

from torchimplicit.autograd.transforms import no_more_than
from torchimplicit.condition import Kind
from torchimplicit.layout import Layout
from torchimplicit.linear.large import Large
from torchimplicit.solvers.active_set import ActiveSet
from torchimplicit.solvers.anderson import Anderson
from torchimplicit.solvers.augmented_lagrangian import AugmentedLagrangian
from torchimplicit.solvers.backtracking import Backtracking
from torchimplicit.solvers.broyden import Broyden
from torchimplicit.solvers.chandrupatla import Chandrupatla
from torchimplicit.solvers.dogleg import Dogleg
from torchimplicit.solvers.interior_point import InteriorPoint
from torchimplicit.solvers.levenberg_marquardt import LevenbergMarquardt
from torchimplicit.solvers.method import Method
from torchimplicit.solvers.newton import Newton
from torchimplicit.solvers.newton_cg import NewtonCG
from torchimplicit.solvers.newton_krylov import NewtonKrylov
from torchimplicit.solvers.polyalgorithm import Polyalgorithm
from torchimplicit.solvers.projected_newton import ProjectedNewton
from torchimplicit.solvers.pseudo_transient import PseudoTransient
from torchimplicit.solvers.trust_newton import TrustNewton

FORMED_LIMIT = 256  # largest n for which n × n Jacobians are formed
DENSE_ENTRIES = 2**26  # of all Jacobians of the batch together
CHEAP_LIMIT = 64  # smallest n for which a Jacobian costs more than an attempt without any
FAST = 0.5  # a contraction factor below which plain steps need no acceleration


def choose(kind: Kind, layout: Layout, sparse: bool = False) -> Method | Polyalgorithm:
    """``auto``: a fixed point (``near_identity``) by plain steps, and by Anderson acceleration from where these are slow;
    anything else by Newton's method, with dense Jacobians up to n = 256 (and 2²⁶ entries over the batch), matrix-free
    (Newton–Krylov) beyond. From n = 64 Broyden's method, which needs no Jacobian, is given a few steps to come nearer first: it
    solves what is not far from z − f(z). The systems of a root that are not solved are tried again (:class:`Polyalgorithm`): an
    equation in one unknown between two points where g has different signs (:class:`Chandrupatla`), if such are found; dense
    systems by the dogleg, then along the flow dz/dt = −g and its reverse (pseudo-transient continuation); matrix-free with a
    line search, then along the flow. A minimum (``minimised``) is found by Newton's method in a trust region, which goes downhill
    and past saddle points, or by Newton-CG; a fit (``sums_squares``) by Levenberg–Marquardt, then as any minimum, beyond that size by
    Newton-CG; within bounds (``bounded``) by projected Newton steps, under constraints (``constrained``) by the augmented Lagrangian.
    Without anything to minimise bounds are part of the equations, and an active set is tried second; from n = 64 an interior point
    method is the first, as it is the last for large minima within bounds. ``sparse`` Jacobians, by ``sparsity=``, are for the methods
    of large systems at any size.
    A failure of all is reported like any other.
    """
    batch, n = layout.batch, layout.size
    if kind.near_identity:
        return LARGE if sparse else Anderson(plain_below=FAST)
    dense = not sparse and n <= FORMED_LIMIT and no_more_than(batch * n * n, DENSE_ENTRIES)
    if kind.constrained:
        return AugmentedLagrangian()
    if kind.bounded and kind.minimised:
        return ProjectedNewton() if dense else LARGE_BOUNDED
    if kind.bounded and n > 1:
        few = SMALL_COMPLEMENTARY if n < CHEAP_LIMIT else COMPLEMENTARY
        return few if dense else LARGE_COMPLEMENTARY
    if kind.sums_squares and dense:
        return FITS
    if kind.minimised:
        return TrustNewton() if dense else NewtonCG()
    if n == 1 and not sparse:
        return NUMBERS
    if dense:
        return SMALL if n < CHEAP_LIMIT else MIDDLING
    return LARGE


_ROBUST = (Newton(), Dogleg(), PseudoTransient(), PseudoTransient(first=-10.0))
NUMBERS = Polyalgorithm((Newton(), Chandrupatla(), Dogleg()))
FITS = Polyalgorithm((LevenbergMarquardt(), TrustNewton()))
SMALL = Polyalgorithm(_ROBUST)
MIDDLING = Polyalgorithm((Broyden(patience=5), *_ROBUST))
LARGE = Polyalgorithm(
    (NewtonKrylov(), NewtonKrylov(line_search=Backtracking()), PseudoTransient(linear_solver=Large()))
)
LARGE_BOUNDED = Polyalgorithm((ProjectedNewton(max_inner=200), InteriorPoint(max_inner=200)))
SMALL_COMPLEMENTARY = Polyalgorithm((_ROBUST[0], ActiveSet(), *_ROBUST[1:]))
COMPLEMENTARY = Polyalgorithm((InteriorPoint(), *_ROBUST))
LARGE_COMPLEMENTARY = Polyalgorithm((InteriorPoint(max_inner=200), *LARGE.stages))
