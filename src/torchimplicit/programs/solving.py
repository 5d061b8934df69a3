"""Quadratic programs from their data to their solutions, and to what the derivative needs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import occurs
from torchimplicit.programs.active_set import CHANGES, WEAK, Settled, settle
from torchimplicit.programs.certificates import infeasibility, unboundedness
from torchimplicit.programs.condensed import PROXIMAL, Condensed
from torchimplicit.programs.earlier import Earlier
from torchimplicit.programs.first_guess import guess
from torchimplicit.programs.interior_point import Point, interior
from torchimplicit.programs.outside import Outside, asked
from torchimplicit.programs.quadratic import Data, OneSided, Programs, Units, scaled
from torchimplicit.status import Status, proven, unanswered

# of the interior point, where a first guess was not enough: from each the constraints that hold the solution are guessed, until right
ACCURACIES = 3e-3, 1e-6, 1e-10, 1e-13
PATIENT = 40  # changes of the set of constraints from the last of them, for those that have a solution
SATISFIED = 1e-9  # largest number that the optimality conditions of a solution lack, beside the size of their terms
MAX_STEPS = 100
BLOCK = 2**20  # entries of the matrices of all systems that are solved together
NOTHING = 8  # in units of eps of the data: what is smaller beside others is 0


@dataclass(frozen=True)
class Solutions:
    """Of B programs: w (B, N), which is z and the multipliers, or a ray that proves that there is no solution; how each ended, after
    how many steps; by how much z is off, (B, n); and the tensors of an :class:`~torchimplicit.programs.kkt_inverse.KKTInverse`."""

    w: Tensor
    status: Tensor
    steps: Tensor
    correction: Tensor
    inverse: tuple[Tensor, ...]


def solve(data: Data, dtype: torch.dtype, max_steps: int = MAX_STEPS, outside: Outside | None = None) -> Solutions:
    """The solutions of programs whose numbers are known to the precision of ``dtype``; many in blocks that fit the cache.

    ``outside`` : a solver of somebody else's, or earlier solutions, from whose answers the solutions are found, where it has any."""
    size = max(1, BLOCK // max(1, data.Q.shape[-1] * (data.Q.shape[-1] + data.G.shape[-2] + data.A.shape[-2])))
    if len(data.Q) <= size or data.Q.device.type != "cpu":
        return _solve(data, dtype, max_steps, outside)
    size = math.ceil(len(data.Q) / math.ceil(len(data.Q) / size))  # all alike, for each step costs something by itself
    parts = [slice(i, i + size) for i in range(0, len(data.Q), size)]
    some = [outside.of_systems(part) if isinstance(outside, Earlier) else outside for part in parts]
    blocks = [_solve(data.of_systems(part), dtype, max_steps, its) for part, its in zip(parts, some, strict=True)]
    w, status, steps, correction = (
        torch.cat([getattr(block, name) for block in blocks]) for name in ("w", "status", "steps", "correction")
    )
    inverse = tuple(map(torch.cat, zip(*(block.inverse for block in blocks), strict=True)))
    return Solutions(w, status, steps, correction, inverse)


def _solve(data: Data, dtype: torch.dtype, max_steps: int, outside: Outside | None) -> Solutions:
    weak = max(WEAK, NOTHING * torch.finfo(dtype).eps)
    programs, units = scaled(data)
    finite, nonconvex = _finite(programs), _nonconvex(programs)
    programs = _convex(programs, nonconvex)
    bounds = data.sizes[-1]
    first = None if outside is None else asked(outside, data, units)
    solved, point, ended, steps = _found(programs, finite, bounds, max_steps, weak, first)
    K = solved.K
    status = torch.where((ended == Status.CONVERGED) | (ended == Status.NONFINITE), Status.STAGNATED, ended)
    status = torch.where((solved.residual <= SATISFIED) & ~proven(ended), Status.CONVERGED, status)
    status = torch.where(nonconvex, Status.NONCONVEX, status)
    status = torch.where(finite, status, Status.NONFINITE)
    refused = torch.where(solved.weak.flatten(1).any(-1) | solved.tight, Status.DEGENERATE, Status.CONVERGED)
    refused = torch.where(solved.loose, Status.SINGULAR, refused)
    K = _harmless(K, unanswered(status) | ~K.L.sum((-2, -1)).isfinite())
    ray = unanswered(status).reshape(-1, 1, 1)
    w = torch.cat([units.z * solved.x, units.y * solved.y], -2)
    w = torch.where(ray, _proof(point, status, units, bounds), w).squeeze(-1)
    free = ray | solved.loose.reshape(-1, 1, 1)  # what moves freely is not off
    correction = torch.where(free, 0, units.z * solved.correction)
    satisfied = (solved.residual <= SATISFIED).reshape(-1, 1, 1)  # of another point a correction says nothing
    correction = torch.where(satisfied, correction, torch.inf).squeeze(-1)
    return Solutions(w, status, steps, correction, (refused, units.z, units.y, units.r, units.t, *K.tensors))


def _proof(point: Point, status: Tensor, units: Units, bounds: int) -> Tensor:
    """The direction x along which the objective falls, or multipliers whose combination of the constraints is a contradiction: those of
    lower bounds stand in the place of x."""
    first, upper, lower = point.y.split([point.y.shape[-2] - 2 * bounds, bounds, bounds], -2)
    dual = torch.cat([first, upper], -2)
    lower = units.y[:, first.shape[-2] :] * lower if bounds else torch.zeros_like(point.x)
    x = torch.where((status == Status.PRIMAL_INFEASIBLE).reshape(-1, 1, 1), lower, units.z * point.x)
    return torch.cat([x, units.y * dual], -2)


def _settled(programs: Programs, point: Point, bounds: int, weak: float, changes: Tensor) -> Settled:
    x, y = point.x / point.tau, point.y / point.tau
    there = (x.sum(-2, keepdim=True) + y.sum(-2, keepdim=True)).isfinite()  # else from the beginning
    x, y = torch.where(there, x, 0), torch.where(there, y, 0)
    return settle(programs, x, OneSided.signed(y, bounds), weak, changes)


def _found(
    programs: Programs,
    wanted: Tensor,
    bounds: int,
    max_steps: int,
    weak: float,
    answers: tuple[Point, Tensor, Tensor] | None,
) -> tuple[Settled, Point, Tensor, Tensor]:
    """The solutions of the systems that are ``wanted`` (B,); where there is none, the point is the proof. How each ended, after how
    many steps. The ``answers`` of somebody else's solver are tried first, or a guess: the interior point does not go on from them."""
    point, ended, steps = guess(programs.one_sided(bounds), max_steps) if answers is None else answers
    solved = _settled(programs, point, bounds, weak, torch.where(ended == Status.CONVERGED, CHANGES, 0))
    if answers is None:  # which of many solutions is found is not for single precision to decide
        solved = replace(solved, residual=torch.where(solved.loose, torch.inf, solved.residual))
    anew = True
    for accuracy in ACCURACIES:
        missed = wanted & _missed(solved, ended)
        missed = missed if anew else missed & (ended == Status.CONVERGED)
        if not occurs(missed):
            break
        which = missed.nonzero().squeeze(-1)
        some = programs.of_systems(which)
        start = None if anew else point.of_systems(which)
        later, how, taken = interior(some.one_sided(bounds), steps[which], max_steps, accuracy, start)
        changes = torch.full_like(taken, PATIENT if accuracy == ACCURACIES[-1] else CHANGES)
        nearer = _settled(some, later, bounds, weak, changes)
        better = (nearer.residual <= solved.residual[which].nan_to_num(nan=torch.inf)).nonzero().squeeze(-1)
        solved, point = solved.put(which[better], nearer.of_systems(better)), point.put(which, later)
        ended, steps, anew = ended.index_copy(0, which, how), steps.index_copy(0, which, taken), False
    missed = wanted & _missed(solved, ended)
    if occurs(missed):
        point, ended = _proven(programs, missed.nonzero().squeeze(-1), bounds, point, ended)
    return solved, point, ended, steps


def _missed(solved: Settled, ended: Tensor) -> Tensor:
    return ~(solved.residual <= SATISFIED) & ~proven(ended)


def _proven(programs: Programs, which: Tensor, bounds: int, point: Point, ended: Tensor) -> tuple[Point, Tensor]:
    """With proofs, where there are any, that some systems have no solution."""
    one = programs.of_systems(which).one_sided(bounds)
    y, infeasible = infeasibility(one)
    x, unbounded = unboundedness(one)
    how = torch.where(unbounded, Status.DUAL_INFEASIBLE, ended[which])
    how = torch.where(infeasible, Status.PRIMAL_INFEASIBLE, how)
    return point.put(which, replace(point.of_systems(which), x=x, y=y)), ended.index_copy(0, which, how)


def _nonconvex(programs: Programs) -> Tensor:
    """Systems (B,) whose objective falls without bound, or is not convex, in a direction that the equalities leave free."""
    equal = (programs.lower == programs.upper).to(programs.q.dtype)
    H = programs.Q.clone()
    H.diagonal(dim1=-2, dim2=-1).add_(PROXIMAL)
    _, everywhere = torch.linalg.cholesky_ex(H)
    if not occurs(everywhere):
        return everywhere > 0
    # The weights of the equalities are so large that their rounding may hide a Q near 0: asked only of those that need them.
    _, within = torch.linalg.cholesky_ex(programs.rows.gram(equal / PROXIMAL, H))
    return (everywhere > 0) & (within > 0)


def _convex(programs: Programs, nonconvex: Tensor) -> Programs:
    """With the identity in place of a Q (B,) of which no solution is wanted."""
    if not occurs(nonconvex):
        return programs
    eye = torch.eye(programs.Q.shape[-1], dtype=programs.Q.dtype, device=programs.Q.device)
    return replace(programs, Q=torch.where(nonconvex.reshape(-1, 1, 1), eye, programs.Q))


def _finite(programs: Programs) -> Tensor:
    """Systems (B,) whose data are numbers, and whose bounds, where they are infinite, leave room."""
    parts = (programs.Q, programs.q, programs.rows.C)
    right = [part.flatten(1).sum(-1).isfinite() for part in parts]  # scaled numbers do not overflow
    right += [part.flatten(1).all(-1) for part in (programs.lower < torch.inf, programs.upper > -torch.inf)]
    return torch.stack(right).all(0)


def _harmless(K: Condensed, rows: Tensor) -> Condensed:
    """With the identity in place of those of some rows (B,), of which no solution is wanted."""
    if not occurs(rows):
        return K
    rows = rows.reshape(-1, 1, 1)
    eye = torch.eye(K.L.shape[-1], dtype=K.L.dtype, device=K.L.device)
    clean = [torch.where(rows, 0, t) for t in (K.rows.C, *K.rows.diagonals)]
    return Condensed.of(
        [torch.where(rows, eye, K.Q), torch.where(rows, torch.inf, K.W), torch.where(rows, eye, K.L), *clean]
    )
