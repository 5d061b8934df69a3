"""Cone programs: z* that minimises ½ zᵀPz + qᵀz subject to Az + s = b with s in a product of cones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.adjoints import Adjoint
from torchimplicit.compiling.entry import entry_point
from torchimplicit.layout import HALF, describe
from torchimplicit.problems.cone_family import Family, pose_and_solve
from torchimplicit.programs.cones import Cones
from torchimplicit.programs.conic import ConePrograms
from torchimplicit.programs.matrix import Matrix, dense_or_sparse
from torchimplicit.programs.outside import ConeSolver
from torchimplicit.solution import Solution
from torchimplicit.status import OnFailure


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
    programs, batch_shape = checked(P, q, A, b, cones)
    if batch_ndim is not None and batch_ndim != len(batch_shape):
        raise ValueError(
            f"batch_ndim={batch_ndim}, but the data have {len(batch_shape)} batch dimensions {tuple(batch_shape)}: q has shape "
            f"{tuple(q.shape)}, b {tuple(b.shape)}. All dimensions before those of a matrix or a vector index systems."
        )
    family = Family(programs.of, programs.tensors, programs.core)
    return pose_and_solve(
        family,
        batch_shape,
        solver=solver,
        adjoint=adjoint,
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
        on_failure=on_failure,
    )


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
