"""Cone programs: z* that minimises ½ zᵀPz + qᵀz subject to Az + s = b with s in a product of cones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from torchimplicit.adjoints import Adjoint, Implicit
from torchimplicit.adjoints.unrolled import Unrolled
from torchimplicit.capture.autocast import Autocast
from torchimplicit.compiling.entry import entry_point
from torchimplicit.condition import Kind
from torchimplicit.layout import HALF, Layout, describe, same_as_z
from torchimplicit.linear.solver import Left
from torchimplicit.loop.search import Inside
from torchimplicit.loop.settings import LoopSettings
from torchimplicit.loop.solve import SearchResult
from torchimplicit.parameters import check_steps
from torchimplicit.problem import Problem
from torchimplicit.problems.all_systems import of_all_systems
from torchimplicit.problems.pose import check_adjoint
from torchimplicit.problems.program_search import ProgramSearch
from torchimplicit.programs.clarabel import Clarabel
from torchimplicit.programs.cone_solving import ConeInverse, solve
from torchimplicit.programs.cones import Cones
from torchimplicit.programs.conic import ConePrograms
from torchimplicit.programs.faces import WEAK
from torchimplicit.programs.info import ConeCertificate, ProgramInfo
from torchimplicit.programs.matrix import Matrix, dense_or_sparse
from torchimplicit.programs.outside import ConeSolver
from torchimplicit.solution import Record, Solution
from torchimplicit.solvers.equations import Equations
from torchimplicit.status import OnFailure, Status, check_policy, unanswered
from torchimplicit.tolerance import Tolerance


class ConeOptimum(Kind):
    """The optimality conditions of a cone program, in w = (z, y): each cone's on the face on which its slack and its multiplier lie."""

    name = "solution of the cone program"


@dataclass(frozen=True)
class Conditions:
    """The conditions as a function of w = (z, y) and the tensors of the data."""

    programs: ConePrograms

    def __call__(self, w: tuple[Tensor, Tensor], *data: Tensor) -> tuple[Tensor, Tensor]:
        return self.programs.of(data).conditions(*w)


@dataclass(frozen=True)
class ConeSearch(ProgramSearch):
    """A solver of somebody else's, and Newton's method on the conditions (:mod:`torchimplicit.programs.cone_solving`)."""

    programs: ConePrograms
    solver: ConeSolver
    max_steps: int | None

    def __call__(self, equations: Equations, z0: Tensor, settings: LoopSettings, inside: Inside | None) -> SearchResult:
        tensors, vmaps = (self.programs.tensors, ()) if inside is None else (inside.tensors, inside.vmaps)
        data = of_all_systems(tensors, self.programs.core, vmaps, self.layout.batch_shape)
        return self.told(solve(self.programs.of(tuple(data)), self.solver, self.max_steps), equations, z0)

    def from_tensors(self, tensors: Sequence[Tensor]) -> Left:
        return ConeInverse(tensors)


@entry_point
def cone_program(
    P: Any,
    q: Tensor,
    A: Any,
    b: Tensor,
    cones: Cones,
    *,
    solver: ConeSolver | None = None,
    adjoint: Adjoint | None = None,
    batch_ndim: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
    on_failure: OnFailure = "warn",
) -> Solution:
    """Minimise ½ zᵀPz + qᵀz over Az + s = b with s in a product of cones, differentiable in all of the data.

    Equalities, inequalities, second-order cones, semidefinite matrices and exponential cones, in the order of ``cones``. All data may
    have batch dimensions in front, which broadcast: each system has its own status. A solver of somebody else's finds z, for one system
    after the other; Newton's method on the optimality conditions, for all at once, brings it to rounding (in float64, whatever the
    dtype), and shows whether it is a solution. The derivative is that of these conditions.

    Args:
        P: (..., n, n), positive semidefinite (its symmetric part counts); None for 0.
        q: (..., n).
        A, b: (..., m, n) and (..., m), the rows in the order of ``cones``. P and A may be sparse: tensors of torch of two dimensions
            (COO or CSR), whose entries then have gradients, or arrays of SciPy, which are constant.
        cones: a :class:`torchimplicit.Cones`.
        solver: of others: ``ti.interop.Clarabel()`` by default, with its own settings.
        adjoint: ``Implicit()`` by default.
        batch_ndim: how many dimensions in front index systems; by default all that there are.
        rtol, atol: no number of z is off by more than atol + rtol · rms(z); by default √eps and eps of the dtype.
        max_steps: of the solver; by default its own limit.
        on_failure: "warn", "raise", "nan" or "ignore"; for the forward and the backward.

    Returns:
        ``Solution(value, info)``: z (..., n), and a :class:`torchimplicit.programs.info.ProgramInfo`. ``info.dual`` holds the
        multipliers y (..., m) in the dual cone, differentiable too, of the Lagrangian ½ zᵀPz + qᵀz + yᵀ(Az − b): where b becomes b + ε,
        the least value changes by −yᵀε. ``info.active`` tells which rows belong to cones with a multiplier. Where there is no solution
        the status is PRIMAL_INFEASIBLE or DUAL_INFEASIBLE, z is NaN, and ``info.certificate`` proves it. Where the objective is
        NONCONVEX (which is not looked for in a sparse P), or the data are NONFINITE, z is NaN too.

    Derivatives: exact, of every order, where z* and y are unique and each slack and its multiplier are strictly complementary (s + y
    inside of each cone). Where they are not, a backward reports DEGENERATE, for the derivative is one-sided; where z* is not unique,
    SINGULAR.

    Raises:
        TypeError, ValueError: the data do not fit; the message names the shapes.
        ImportError: Clarabel is not installed: ``pip install 'torchimplicit[cone]'``.
        ConvergenceError: a system failed under ``on_failure="raise"``.

    Sources: Agrawal, Barratt, Boyd, Busseti and Moursi, Differentiating through a cone program, J. Appl. Numer. Optim. 1 (2019);
    Busseti, Moursi and Boyd, Solution refinement at regular points of conic problems, Comput. Optim. Appl. 74 (2019). Their conditions
    contain projections; those of :mod:`torchimplicit.programs.faces`, which have the same derivative, do not.
    """
    check_policy(on_failure)
    check_steps(max_steps)
    check_adjoint(adjoint)
    if isinstance(adjoint, Unrolled):
        raise TypeError("the steps of the solver have no derivative. Use Implicit() (the default).")
    if solver is None:
        solver = Clarabel()
    if not callable(getattr(solver, "cone_programs", None)):
        raise TypeError(f"solver must be one for cone programs, such as ti.interop.Clarabel(); got {describe(solver)}.")
    programs, batch_shape = checked(P, q, A, b, cones)
    if batch_ndim is not None and batch_ndim != len(batch_shape):
        raise ValueError(
            f"batch_ndim={batch_ndim}, but the data have {len(batch_shape)} batch dimensions {tuple(batch_shape)}: q has shape "
            f"{tuple(q.shape)}, b {tuple(b.shape)}. All dimensions before those of a matrix or a vector index systems."
        )
    layout = Layout.of(tuple(q.detach().new_zeros(*batch_shape, v.shape[-1]) for v in (q, b)), len(batch_shape))
    tolerance = Tolerance.of(rtol, atol, layout.real_dtype)
    problem = Problem(
        kind=ConeOptimum(),
        fn=Conditions(programs),
        args=programs.tensors,
        layout=layout,
        flatten=lambda layout, _: same_as_z(layout, "the conditions"),
        search=ConeSearch(layout, tolerance, programs, solver, max_steps),
        tolerance=tolerance,
        max_steps=0,
        on_failure=on_failure,
        has_aux=False,
        record=Record(ConeOptimum.name),
        autocast=Autocast.now(layout.device.type),
    )
    w0 = torch.zeros(layout.batch, layout.size, dtype=layout.real_dtype, device=layout.device)
    return _told((adjoint or Implicit()).run(problem, w0), programs)


def checked(P: Any, q: Any, A: Any, b: Any, cones: Any) -> tuple[ConePrograms, torch.Size]:
    """The programs and their batch dimensions; raises where the data do not fit."""
    for name, v in (("q", q), ("b", b)):
        if not isinstance(v, Tensor) or v.layout != torch.strided or not v.is_floating_point() or v.dtype in HALF:
            raise TypeError(f"{name} must be a dense tensor of float64 or float32; got {describe(v)}.")
        if v.ndim < 1:
            raise ValueError(f"{name} must be vectors (..., {'n' if name == 'q' else 'm'}); got a {describe(v)}.")
    if not isinstance(cones, Cones):
        raise TypeError(f"cones must be a ti.Cones, such as ti.Cones(zero=1, second_order=[3]); got {describe(cones)}.")
    n, m = q.shape[-1], b.shape[-1]
    if n == 0:
        raise ValueError(f"a program has at least one unknown; q has shape {tuple(q.shape)}.")
    if cones.rows != m:
        raise ValueError(f"{cones} has {cones.rows} rows, but b has {m} numbers, {describe(b)}.")
    matrices: dict[str, Matrix] = {}
    for name, value, rows in (("P", P, n), ("A", A, m)):
        if value is None and name == "P":
            continue
        matrix = dense_or_sparse(value, q)
        if matrix is None:
            raise TypeError(
                f"{name} must be a tensor, dense or sparse, or a sparse array of SciPy; got {describe(value)}."
            )
        if matrix.values.ndim < matrix.core or matrix.shape != (rows, n):
            raise ValueError(
                f"{name} must have shape (..., {rows}, {n}), for q has {n} numbers and b {m}; got {describe(value)}."
            )
        matrices[name] = matrix
    programs = ConePrograms(matrices.get("P"), q, matrices["A"], b, cones)
    for t in programs.tensors:
        if t.dtype != q.dtype or t.device != q.device:
            raise TypeError(
                f"all data must share one dtype and one device; q is a {describe(q)}, another a {describe(t)}."
            )
    fronts = [t.shape[: t.ndim - core] for t, core in zip(programs.tensors, programs.core, strict=True)]
    try:
        batch_shape = torch.broadcast_shapes(*fronts)
    except RuntimeError:
        raise ValueError(
            f"the batch dimensions of the data do not broadcast: {', '.join(str(tuple(f)) for f in fronts)}."
        ) from None
    return programs, torch.Size(batch_shape)


def _told(found: Solution, programs: ConePrograms) -> Solution:
    """z and the multipliers as the user sees them: NaN where there is no solution, and what proves it."""
    (z, y), info = found
    none = unanswered(info.status).unsqueeze(-1)
    primal = (info.status == Status.PRIMAL_INFEASIBLE).unsqueeze(-1)
    unbounded = (info.status == Status.DUAL_INFEASIBLE).unsqueeze(-1)
    ray, proof = z.detach(), y.detach()
    value = -(programs.b.detach() * proof).sum(-1, keepdim=True)
    falls = -(programs.q.detach() * ray).sum(-1, keepdim=True)
    certificate = ConeCertificate(
        torch.where(unbounded, ray / falls, torch.nan), torch.where(primal, proof / value, torch.nan)
    )
    size = proof / programs.units(ray, proof)[1]
    held = programs.in_cones(lambda kind, s, y: (y.abs() > WEAK).any(-1, keepdim=True).expand(y.shape), size, size)
    active = torch.cat([proof[..., :0].bool(), *(part.flatten(-2) for part in held)], -1)
    facts = {field.name: getattr(info, field.name) for field in fields(info)}
    z, y = (torch.where(none, torch.nan, part) for part in (z, y))
    return Solution(z, ProgramInfo(**facts, dual=y, active=active & ~none, certificate=certificate))
