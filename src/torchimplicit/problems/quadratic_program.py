"""Quadratic programs: z* that minimises ½ zᵀQz + pᵀz subject to Gz ≤ h, Az = b and lower ≤ z ≤ upper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from inspect import Parameter, Signature
from typing import Any

import torch
from torch import Tensor

from torchimplicit.adjoints import Adjoint, Implicit
from torchimplicit.adjoints.unrolled import Unrolled
from torchimplicit.capture.autocast import Autocast
from torchimplicit.compiling.entry import entry_point
from torchimplicit.condition import Kind, Vmap
from torchimplicit.layout import HALF, Layout, describe, same_as_z
from torchimplicit.linear.solver import Left
from torchimplicit.linear.vectors import times
from torchimplicit.loop.search import Inside
from torchimplicit.loop.settings import LoopSettings
from torchimplicit.loop.solve import SearchResult
from torchimplicit.parameters import check_positive, check_steps
from torchimplicit.problem import Problem
from torchimplicit.problems.all_systems import of_all_systems
from torchimplicit.problems.pose import check_adjoint
from torchimplicit.problems.program_search import ProgramSearch
from torchimplicit.problems.smoothed import smoothed
from torchimplicit.programs.earlier import Earlier, earlier
from torchimplicit.programs.info import Certificate, Dual, ProgramInfo, shown
from torchimplicit.programs.kkt_inverse import KKTInverse
from torchimplicit.programs.outside import Outside, check_outside
from torchimplicit.programs.quadratic import Data
from torchimplicit.programs.solving import MAX_STEPS, solve
from torchimplicit.solution import Record, Solution
from torchimplicit.solvers.equations import Equations
from torchimplicit.status import OnFailure, Status, check_policy, unanswered
from torchimplicit.tolerance import Tolerance

NAMES = ("Q", "p", "G", "h", "A", "b", "lower", "upper")
CORE = (2, 1, 2, 1, 2, 1, 1, 1)  # how many dimensions of each follow those of the batch


class Optimum(Kind):
    """The optimality conditions (Karush, Kuhn and Tucker) of a program, in w = (z, multipliers).

    With the constraints that hold z fixed they are linear, and their Jacobian is symmetric.
    """

    name = "solution of the program"
    symmetric = True
    linear = True


@dataclass(frozen=True)
class Conditions:
    """The conditions as a function of w = (z, λ, ν, μ) and of those of the data that were given, by their ``names``.

    A multiplier that is not 0 tells that its constraint holds z, and at which of its two bounds.
    """

    names: tuple[str, ...]
    __name__ = "quadratic_program"  # as errors call it

    @property
    def __signature__(self) -> Signature:
        return Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in ("w", *self.names)])

    def __call__(self, w: tuple[Tensor, ...], *data: Tensor) -> tuple[Tensor, ...]:
        z, inequality, equality, bounds = w
        given: dict[str, Tensor] = dict(zip(self.names, data, strict=True))
        Q = given["Q"]
        gradient = (times(Q, z) + times(Q.mT, z)) / 2 + given["p"]
        of_inequality, of_equality, of_bounds = inequality, equality, bounds  # nothing, where there are none
        if "G" in given:
            held = inequality > 0
            gradient = gradient + times(given["G"].mT, torch.where(held, inequality, 0))
            of_inequality = torch.where(held, times(given["G"], z) - given["h"], -inequality)
        if "A" in given:
            gradient = gradient + times(given["A"].mT, equality)
            of_equality = times(given["A"], z) - given["b"]
        if "lower" in given:
            lower, upper = given["lower"], given["upper"]
            fixed = (lower == upper) & (bounds == 0)
            above, below = bounds > 0, bounds < 0
            gradient = gradient + torch.where(above | below | fixed, bounds, 0)
            of_bounds = torch.where(fixed, z - (lower + upper) / 2, -bounds)
            of_bounds = torch.where(above, z - upper, torch.where(below, z - lower, of_bounds))
        return gradient, of_inequality, of_equality, of_bounds


@dataclass(frozen=True)
class QuadraticSearch(ProgramSearch):
    """The interior point and the active set (:mod:`torchimplicit.programs`), for data of all systems of all vmaps at once."""

    names: tuple[str, ...]
    data: tuple[Tensor, ...]
    max_steps: int
    outside: Outside | None  # or what was found earlier

    def __call__(self, equations: Equations, z0: Tensor, settings: LoopSettings, inside: Inside | None) -> SearchResult:
        data = self._of_all(self.data, ()) if inside is None else self._of_all(inside.tensors, inside.vmaps)
        mapped = inside is not None and bool(inside.vmaps)
        outside = (
            None if mapped and isinstance(self.outside, Earlier) else self.outside
        )  # a start is not of all samples
        return self.told(solve(data, self.layout.real_dtype, self.max_steps, outside), equations, z0)

    def _of_all(self, tensors: Sequence[Tensor], vmaps: Sequence[Vmap]) -> Data:
        """The data, (B, ...) each, of all samples of nested vmaps, outermost first, each with the systems of the layout."""
        core = [CORE[NAMES.index(name)] for name in self.names]
        all_of_them = of_all_systems(tensors, core, vmaps, self.layout.batch_shape)
        parts = dict(zip(self.names, all_of_them, strict=True))
        Q = parts["Q"]
        none = {"G": Q.new_zeros(len(Q), 0, Q.shape[-1]), "h": Q.new_zeros(len(Q), 0)}
        none.update(A=none["G"], b=none["h"])
        of_bounds = {name: parts.get(name) for name in ("lower", "upper")}
        return Data(**{name: parts.get(name, none.get(name)) for name in NAMES[:6]}, **of_bounds)  # type: ignore[arg-type]

    def from_tensors(self, tensors: Sequence[Tensor]) -> Left:
        return KKTInverse(tensors)


@entry_point
def quadratic_program(
    Q: Tensor,
    p: Tensor,
    G: Tensor | None = None,
    h: Tensor | None = None,
    A: Tensor | None = None,
    b: Tensor | None = None,
    lower: Tensor | float | None = None,
    upper: Tensor | float | None = None,
    *,
    start: Solution | None = None,
    solver: Outside | None = None,
    smoothing: float | None = None,
    adjoint: Adjoint | None = None,
    batch_ndim: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
    on_failure: OnFailure = "warn",
) -> Solution:
    """Minimise ½ zᵀQz + pᵀz over Gz ≤ h, Az = b, lower ≤ z ≤ upper, differentiable in all of the data.

    A convex program: Q is positive semidefinite (of Q the symmetric part counts), at least in the directions that Az = b leaves free;
    0 for a linear program. All data may have batch dimensions in front, which broadcast: each system is solved for itself, and has its
    own status. The solution is found in float64, whatever the dtype. Which constraints hold it is guessed in single precision first,
    and by a primal-dual interior-point method in float64 where that guess fails; with these the solution is one of a linear system,
    which also gives the derivatives.

    Args:
        Q, p: (..., n, n) and (..., n).
        G, h: inequalities, (..., m, n) and (..., m); an h of +∞ is no constraint.
        A, b: equalities, (..., k, n) and (..., k); some may follow from others.
        lower, upper: bounds (..., n) or numbers, infinite where there is none; one that lies 1e15 times as far away as z might is none.
        start: what this function returned for a program of the same sizes; its batch dimensions broadcast. Where the same constraints
            hold z, or all but a few, z is found without the interior point, in one step; elsewhere it is looked for as ever. What is
            found does not depend on it, and no derivative goes through it. Inside ``torch.func.vmap`` it is not used.
        solver: a solver of somebody else's, such as ``ti.interop.qpsolvers("piqp")``, in the place of our interior point. What it gives
            is a start, from which the constraints that hold z* are found; where it gives none, the interior point looks for a solution,
            or for the proof that there is none. What is promised below is the same.
        smoothing: μ > 0: the derivatives, of every order, are those of the minimum of ½ zᵀQz + pᵀz − μ Σ log(slack), the barrier
            problem, an approximation; the values are those of the program itself. For linear programs and other vertices, whose own
            derivatives in p are 0, and for degenerate ones. μ has the unit of the objective.
        adjoint: ``Implicit()`` by default.
        batch_ndim: how many dimensions in front index systems; by default all that there are.
        rtol, atol: no number of z is off by more than atol + rtol · rms(z); by default √eps and eps of the dtype.
        max_steps: of the guess and the interior point together; by default 100.
        on_failure: "warn", "raise", "nan" or "ignore"; for the forward and the backward.

    Returns:
        ``Solution(value, info)``: z (..., n), and a :class:`torchimplicit.programs.info.ProgramInfo`. ``info.dual`` holds the
        multipliers, differentiable too: of the Lagrangian ½ zᵀQz + pᵀz + λᵀ(Gz − h) + νᵀ(Az − b) + μᵀz with λ ≥ 0, and μ ≥ 0
        at the upper bound, ≤ 0 at the lower. ``info.active`` tells which constraints hold z. Where there is no solution the status
        is PRIMAL_INFEASIBLE (no z meets the constraints) or DUAL_INFEASIBLE (the objective falls for ever), z is NaN, and
        ``info.certificate`` proves it. Where the objective is NONCONVEX, or the data are NONFINITE, z is NaN too.

    Both proofs hold to within 1e-7, in units of the unknowns and of the rows in which the data are about 1: with a direction x as the
    certificate has it, pᵀx = −1, the sums of |Qx| and of what the rows are violated by are at most 1e-7. They exclude solutions, and
    multipliers, up to 1e7 times the size of the data, not those farther away: along an x that mixes unknowns a curvature below 1e-8
    of the size of Q counts as 0. (That of one unknown alone may be 1e-14: its unit is changed.) If it is meant, say so by other units,
    or by bounds.

    Derivatives: exact, of every order, where z* is unique, the constraints that hold it are independent and each has a multiplier that
    is not 0. Where it is not unique the backward reports SINGULAR; where a constraint touches z with a multiplier of 0, or
    inequalities that hold it depend on each other, DEGENERATE, for the derivative is one-sided: that without such a constraint.
    Equalities that follow from others do no harm, but only changes of A and b that keep them consistent have a meaning.

    Raises:
        TypeError, ValueError: the data do not fit; the message names the shapes.
        ConvergenceError: a system failed under ``on_failure="raise"``.

    Source: Amos and Kolter, OptNet: differentiable optimization as a layer in neural networks, ICML 2017.
    """
    check_policy(on_failure)
    check_steps(max_steps)
    check_adjoint(adjoint)
    check_outside(solver)
    if smoothing is not None:
        check_positive("smoothing", smoothing)
    if isinstance(adjoint, Unrolled):
        raise TypeError("the steps of the interior point have no derivative. Use Implicit() (the default).")
    names, data, batch_shape = checked(Q, p, G, h, A, b, lower, upper)
    if batch_ndim is not None and batch_ndim != len(batch_shape):
        raise ValueError(
            f"batch_ndim={batch_ndim}, but the data have {len(batch_shape)} batch dimensions {tuple(batch_shape)}: Q has shape "
            f"{tuple(Q.shape)}, p {tuple(p.shape)}. All dimensions before those of a matrix or a vector index systems."
        )
    given = dict(zip(names, data, strict=True))
    n, m, k = (data[1].shape[-1], *(given[name].shape[-1] if name in given else 0 for name in ("h", "b")))
    like = [data[1].detach().new_zeros(*batch_shape, size) for size in (n, m, k, n if "lower" in given else 0)]
    layout = Layout.of(tuple(like), len(batch_shape))
    tolerance = Tolerance.of(rtol, atol, layout.real_dtype)
    if start is not None and solver is not None:
        raise TypeError("start= and solver= exclude each other: a solver of somebody else's begins where it likes.")
    outside = solver if start is None else earlier(start, layout)
    search = QuadraticSearch(layout, tolerance, names, data, MAX_STEPS if max_steps is None else max_steps, outside)
    problem = Problem(
        kind=Optimum(),
        fn=Conditions(names),
        args=data,
        layout=layout,
        flatten=lambda layout, _: same_as_z(layout, "the conditions"),
        search=search,
        tolerance=tolerance,
        max_steps=0,
        on_failure=on_failure,
        has_aux=False,
        record=Record(Optimum.name),
        autocast=Autocast.now(layout.device.type),
    )
    w0 = torch.zeros(layout.batch, layout.size, dtype=layout.real_dtype, device=layout.device)
    found = (adjoint or Implicit()).run(problem, w0)
    return _told(found if smoothing is None else smoothed(names, data, found, smoothing, on_failure), given)


def checked(*data: Any) -> tuple[tuple[str, ...], tuple[Tensor, ...], torch.Size]:
    """The names of the data that were given, these as tensors, and their batch dimensions; raises where they do not fit."""
    named = dict(zip(NAMES, data, strict=True))
    p = named["p"]
    for name in ("Q", "p"):
        if not isinstance(named[name], Tensor):
            raise TypeError(f"{name} must be a tensor; got {describe(named[name])}.")
    for one, other in (("G", "h"), ("A", "b")):
        if (named[one] is None) != (named[other] is None):
            missing, there = (one, other) if named[one] is None else (other, one)
            raise TypeError(f"{there} was given without {missing}: {one} z and {other} go together.")
    if named["lower"] is not None or named["upper"] is not None:
        for name, none in (("lower", -math.inf), ("upper", math.inf)):
            bound = none if named[name] is None else named[name]
            bound = bound if isinstance(bound, Tensor) else torch.as_tensor(bound, dtype=p.dtype, device=p.device)
            named[name] = bound.expand(p.shape[-1:]) if bound.ndim == 0 and p.ndim else bound
    given = {name: t for name, t in named.items() if t is not None}
    for name, t in given.items():
        core = CORE[NAMES.index(name)]
        if not isinstance(t, Tensor) or t.layout != torch.strided or not t.is_floating_point() or t.dtype in HALF:
            raise TypeError(
                f"{name} must be a dense tensor of float64 or float32; got {describe(t)}. Of sparse data pass A.to_dense()."
            )
        if t.ndim < core:
            raise ValueError(f"{name} must have shape (..., {', '.join('mn'[-core:])}); got a {describe(t)}.")
        if t.dtype != p.dtype or t.device != p.device:
            raise TypeError(
                f"all data must share one dtype and one device; p is a {describe(p)}, {name} a {describe(t)}."
            )
    n = p.shape[-1]
    if n == 0:
        raise ValueError(f"a program has at least one unknown; p has shape {tuple(p.shape)}.")
    m, k = (given[name].shape[-1] if name in given else 0 for name in ("h", "b"))
    sizes = {"Q": (n, n), "p": (n,), "G": (m, n), "h": (m,), "A": (k, n), "b": (k,), "lower": (n,), "upper": (n,)}
    for name, t in given.items():
        if tuple(t.shape[-len(sizes[name]) :]) != sizes[name]:
            raise ValueError(
                f"{name} must have shape (..., {', '.join(map(str, sizes[name]))}), for p has n = {n} numbers"
                + (f", h {m}" if name == "G" else f", b {k}" if name == "A" else "")
                + f"; got {tuple(t.shape)}."
            )
    fronts = {name: t.shape[: t.ndim - len(sizes[name])] for name, t in given.items()}
    try:
        batch_shape = torch.broadcast_shapes(*fronts.values())
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(front)}" for name, front in fronts.items())
        raise ValueError(f"the batch dimensions of the data do not broadcast: {shapes}.") from None
    return tuple(given), tuple(given.values()), torch.Size(batch_shape)


def _told(found: Solution, given: dict[str, Tensor]) -> Solution:
    """z and the multipliers as the user sees them: NaN where there is no solution, and what proves it."""
    (z, *multipliers), info = found
    dual = Dual(*multipliers)
    none = unanswered(info.status).unsqueeze(-1)
    holds = Dual(dual.inequality > 0, torch.ones_like(dual.equality, dtype=torch.bool), dual.bounds != 0)
    active = Dual(*(flags & ~none for flags in holds))
    facts = {field.name: getattr(info, field.name) for field in fields(info)}
    certificate = _certificate(z.detach(), Dual(*(y.detach() for y in dual)), info.status, given)
    z, *multipliers = shown(info.status, z, *dual)
    return Solution(z, ProgramInfo(**facts, dual=Dual(*multipliers), active=active, certificate=certificate))


def _certificate(x: Tensor, y: Dual, status: Tensor, given: dict[str, Tensor]) -> Certificate:
    """From the ray that stands in the place of a solution (:class:`torchimplicit.programs.solving.Solutions`)."""
    bounded = "lower" in given
    lower, upper = (x, y.bounds) if bounded else (torch.zeros_like(x), torch.zeros_like(x))
    sides = [("h", 1, y.inequality), ("b", 1, y.equality), ("upper", 1, upper), ("lower", -1, lower)]
    terms = [sign * given[name].detach() * part for name, sign, part in sides if name in given]
    value = -sum((torch.where(term.isnan(), 0, term).sum(-1, keepdim=True) for term in terms), x.new_zeros(1))
    falls = -(given["p"].detach() * x).sum(-1, keepdim=True)
    primal = (status == Status.PRIMAL_INFEASIBLE).unsqueeze(-1)
    unbounded = (status == Status.DUAL_INFEASIBLE).unsqueeze(-1)
    multipliers = (torch.where(primal, part / value, torch.nan) for part in (y.inequality, y.equality, lower, upper))
    return Certificate(torch.where(unbounded, x / falls, torch.nan), *multipliers)
