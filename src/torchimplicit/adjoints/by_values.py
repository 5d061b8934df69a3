"""The linear system of a derivative in plain code, where values decide what is computed and what is thought of the solution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchimplicit.adjoints.at_solution import FAR, Diagnosis
from torchimplicit.adjoints.function import in_some
from torchimplicit.adjoints.gauge import solve_singular, unseen
from torchimplicit.adjoints.judged import look, singular_systems
from torchimplicit.adjoints.linearised_solver import LinearisedSolver
from torchimplicit.adjoints.posed import Found, Posed
from torchimplicit.adjoints.sweep import Sweep
from torchimplicit.autograd.products import Linearisation
from torchimplicit.autograd.transforms import finished, occurs
from torchimplicit.linear import Auto, LinearResult
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.status import Status, inaccurate


def solve_by_values(posed: Posed, usable: Tensor, wanted: Sequence[int], sweep: Sweep | None) -> Found:
    """The solution, from the linearisation of a ``sweep`` or from one evaluation of g.

    usable : whether the forward solve of each system has converged, (B,).
    wanted : the tensors of g whose gradients the solution is for, where that is known.
    """
    solver = LinearisedSolver(posed, sweep)
    result, operator = solver.solve(), solver.operator
    singular = singular_systems(solver)
    gauge = singular is not None and occurs(singular)
    if singular is not None and gauge:
        asked = singular & (posed.b != 0).any(-1)
        result, singular = _beside_a_gauge(posed, operator, result, asked, wanted)
    seen: Diagnosis | None = None
    if not (posed.base.kind.linear or solver.truncated):
        rows = usable if finished(result.converged) else result.converged & usable
        rows = rows if singular is None else rows & ~singular
        seen = look(solver, posed.solution(operator, result.x), rows, gauge)
    causes = [] if seen is None else [(seen.singular, Status.SINGULAR), (seen.off, Status.INACCURATE)]
    causes += [] if singular is None else [(singular, Status.SINGULAR)]
    undecided = _undecided(posed, usable)
    causes += [] if undecided is None else [(undecided, Status.DEGENERATE)]
    if posed.inverse is not None and posed.inverse.refused is not None:
        asked, refused = (posed.b != 0).any(-1), posed.inverse.refused
        causes += [(asked & (refused == code), code) for code in (Status.DEGENERATE, Status.SINGULAR)]
    said = ""
    if seen is not None and occurs(seen.off):
        off = seen.off
        for graver, _ in causes[2:]:
            off = off & ~graver
        if occurs(off):
            said = inaccurate(posed.base.kind.name, off, seen.excess, posed.settings.tolerance.bound(posed.z), FAR)
    evaluations = 1 + posed.base.kind.bounded + (0 if seen is None else seen.evaluations)
    return Found(result, causes, evaluations, operator.products, not solver.truncated, said)


def _undecided(posed: Posed, usable: Tensor) -> Tensor | None:
    """Systems that have a derivative to each side only, and are asked for one."""
    if not posed.base.kind.bounded:
        return None
    with torch.no_grad():
        error = posed.settings.tolerance.each(posed.z)
        undecided = posed.base.kind.undecided(posed.base.at(posed.tensors), posed.z, error)
    return None if undecided is None else undecided & usable & (posed.b != 0).any(-1)


def _beside_a_gauge(
    posed: Posed, operator: Jacobian, result: LinearResult, singular: Tensor, wanted: Sequence[int]
) -> tuple[LinearResult, Tensor]:
    """Accept solutions beside a singular Jacobian where the gradients do not depend on the directions in which z* and u may move
    freely. Returns the result, and which systems are still without a derivative."""
    limit = Auto.dense_limit if posed.inverse is None else Auto.fallback_limit
    if not (posed.transpose and wanted and occurs(singular)) or operator.shape[-1] > limit:
        return result, singular
    u, *vectors, solvable = solve_singular(operator.to_dense().mT, posed.b)
    rows = singular & solvable
    if not occurs(rows):
        return result, singular
    g = Linearisation(in_some(posed.base, posed.z, posed.tensors, wanted), [posed.tensors[i] for i in wanted])
    of_null, of_other = (g.pull(torch.where(rows.unsqueeze(-1), vector, 0)) for vector in vectors)
    if not unseen(of_null, of_other):
        return result, singular
    residual = torch.linalg.vector_norm(posed.b - operator.apply(u, True), dim=-1)
    x = torch.where(rows.unsqueeze(-1), u, result.x)
    residual = torch.where(rows, residual, result.residual_norm)
    return result._replace(x=x, residual_norm=residual, converged=result.converged | rows), singular & ~rows
