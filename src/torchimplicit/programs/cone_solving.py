"""Cone programs from the answers of a solver to their solutions, and to what the derivative needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished, occurs
from torchimplicit.linear.dense import Dense
from torchimplicit.linear.lu import LU
from torchimplicit.linear.shortest import invert
from torchimplicit.linear.solver import Refusing
from torchimplicit.linear.superlu import SuperLU
from torchimplicit.programs.conic import ConePrograms
from torchimplicit.programs.faces import outside, outside_dual, weak
from torchimplicit.programs.matrix import Matrix
from torchimplicit.programs.outside import ConeAnswers, ConeSolver
from torchimplicit.programs.solving import BLOCK, Solutions
from torchimplicit.programs.sparse_conic import SparseConeInverse, entries_of_jacobian
from torchimplicit.status import Status, unanswered

SATISFIED = 1e-9  # what the conditions of a solution lack at most, beside their terms
PROVEN = 1e-6  # the same of a proof that there is none
NEWTON = 30  # steps from the solver's answer: between two faces each halves the error
EXACT = 4  # in units of eps: a step that is smaller is none
SHRINKS = 0.75  # times the last step: if no more than by that, a small step is rounding
CONVEX = 1e-9  # of the largest entry of P: an eigenvalue that is no more negative is 0


def solve(programs: ConePrograms, solver: ConeSolver, max_steps: int | None) -> Solutions:
    """The solutions; many in blocks, so that the matrices of one fit the cache. w is (z, y)."""
    B, size = len(programs.q), programs.q.shape[-1] + programs.b.shape[-1]
    numbers = programs.A.values.shape[-1] if programs.by_entries else size * size
    at_once = max(1, BLOCK // max(1, numbers))
    if at_once >= B:
        return _solve(programs, solver, max_steps)
    blocks = [_solve(programs.of_systems(slice(i, i + at_once)), solver, max_steps) for i in range(0, B, at_once)]
    parts = (torch.cat([getattr(block, name) for block in blocks]) for name in ("w", "status", "steps", "correction"))
    w, status, steps, correction = parts
    return Solutions(w, status, steps, correction, tuple(map(torch.cat, zip(*(block.inverse for block in blocks)))))


def _solve(programs: ConePrograms, solver: ConeSolver, max_steps: int | None) -> Solutions:
    finite = _finite(programs)
    convex = _convex(programs)
    answers = _asked(programs, solver, finite & convex, max_steps)
    polished = _polished(programs, torch.cat([answers.z, answers.y], -1))
    status = torch.where(polished.lacking <= SATISFIED, Status.CONVERGED, answers.status)
    unsolved = (answers.status == Status.CONVERGED) & ~(polished.lacking <= SATISFIED)
    status = torch.where(unsolved, Status.STAGNATED, status)
    status = _proven(programs, answers, status)
    status = torch.where(convex, status, Status.NONCONVEX)
    status = torch.where(finite, status, Status.NONFINITE)
    none = unanswered(status)
    J = polished.J
    if occurs(none):
        J = J.or_identity(none)
    w = torch.where(none.unsqueeze(-1), torch.cat([answers.z, answers.y], -1), polished.w)
    correction = torch.where(none.unsqueeze(-1), 0, polished.step)
    refused = torch.where(_between(programs, polished.w) & ~none, Status.DEGENERATE, Status.CONVERGED)
    inverse = SparseConeInverse.tensors(refused, J) if programs.by_entries else ConeInverse.tensors(refused, J)
    return Solutions(w, status, answers.steps, correction[:, : programs.q.shape[-1]], inverse)


def _asked(programs: ConePrograms, solver: ConeSolver, which: Tensor, max_steps: int | None) -> ConeAnswers:
    """The answers, for programs that have some; 0 for the others."""
    if finished(which):
        return solver.cone_programs(programs, max_steps)
    rows = which.nonzero().squeeze(-1)
    found = solver.cone_programs(programs.of_systems(rows), max_steps)
    whole = (
        torch.zeros_like(programs.q),
        torch.zeros_like(programs.b),
        *(torch.zeros_like(which, dtype=torch.int64),) * 2,
    )
    return ConeAnswers(*(all_.index_copy(0, rows, some) for all_, some in zip(whole, found, strict=True)))


@dataclass(frozen=True)
class Polished:
    """Points w (B, n + m), with what Newton's method makes of each.

    step : the step that would follow; length : its size beside w, (B,); J : the Jacobian of the conditions.
    lacking : the largest number that the conditions lack, beside their terms, (B,).
    """

    w: Tensor
    step: Tensor
    length: Tensor
    J: Matrix
    lacking: Tensor

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return self.w, self.step, self.length, self.J.values, self.lacking

    def or_better(self, rows: Tensor, other: Polished) -> Polished:
        """With those of ``other`` in the places ``rows``, where these lack less; of two that lack nothing, those with the shorter
        step."""
        lacking, length = self.lacking[rows], self.length[rows]
        both = lacking.maximum(other.lacking) <= SATISFIED
        better = torch.where(both, other.length < length, other.lacking < lacking).nonzero().squeeze(-1)
        rows = rows[better]
        w, step, length, values, lacking = (
            a.index_copy(0, rows, b[better]) for a, b in zip(self.parts, other.parts, strict=True)
        )
        return Polished(w, step, length, self.J.of(values), lacking)


def _polished(programs: ConePrograms, w: Tensor, last: Tensor | None = None, steps: int = NEWTON) -> Polished:
    """The best points of Newton's method from w, to which steps of the ``last`` lengths (B,) have led; systems that come no nearer are
    left out."""
    n, about = programs.q.shape[-1], torch.finfo(w.dtype)
    J, step = _newton(programs, w)
    step = torch.where(step.isfinite().all(-1, keepdim=True), step, torch.inf)
    parts = [(step[:, i], w[:, i]) for i in (slice(n), slice(n, None))]
    length = torch.stack([_largest(d) / (_largest(of) + about.tiny) for d, of in parts]).amax(0)
    here = Polished(w, step, length, J, _lacking(programs, w).nan_to_num(nan=torch.inf))
    moving = (length > EXACT * about.eps) & (length < torch.inf)
    if last is not None:
        moving = moving & ~((length > SHRINKS * last) & (length < about.eps**0.5))
    rows = moving.nonzero().squeeze(-1)
    if not (steps and len(rows)):
        return here
    later = _polished(programs.of_systems(rows), (w - step)[rows], length[rows], steps - 1)
    return here.or_better(rows, later)


def _newton(programs: ConePrograms, w: Tensor) -> tuple[Matrix, Tensor]:
    """The Jacobian of the conditions at w, and J⁻¹ of them; of dense ones that are singular, the shortest."""
    n = programs.q.shape[-1]
    if programs.by_entries:
        r, entries = entries_of_jacobian(programs, w[:, :n], w[:, n:])
        assert entries.pattern is not None
        return entries, SuperLU(entries.values, entries.pattern).solve(r)
    r, J = programs.jacobian(w[:, :n], w[:, n:])
    return Matrix(J), invert(LU(), J, r, w, lambda: None).solve(LU(), r)


def _between(programs: ConePrograms, w: Tensor) -> Tensor:
    """Systems (B,) in which a slack and its multiplier lie between two faces."""
    n = programs.q.shape[-1]
    z, y = w[:, :n], w[:, n:]
    s, (of_s, of_y) = programs.slack(z), programs.units(z, y)
    found = programs.in_cones(weak, s / of_s, y / of_y)
    return torch.cat([torch.zeros_like(z[:, :1], dtype=torch.bool), *found], -1).any(-1)


def _lacking(programs: ConePrograms, w: Tensor) -> Tensor:
    n = programs.q.shape[-1]
    z, y = w[:, :n], w[:, n:]
    s, (of_s, of_y) = programs.slack(z), programs.units(z, y)
    terms = torch.stack([programs.curvature(z), programs.q, programs.A.transposed(y)])
    size = _largest(terms).amax(0)
    gradient = _largest(terms.sum(0)) / (size + torch.finfo(w.dtype).tiny)
    s, y = s / of_s, y / of_y
    gap = (s * y).sum(-1).abs() / max(1, y.shape[-1])
    violated = [
        _largest(part)
        for part in programs.in_cones(lambda kind, s, y: outside(kind, s).maximum(outside_dual(kind, y)), s, y)
    ]
    return torch.stack([gradient, gap, *violated]).amax(0)


def _proven(programs: ConePrograms, answers: ConeAnswers, status: Tensor) -> Tensor:
    """The statuses, where a program has no solution only where that is proved: else the search has stagnated."""
    z, y = answers.z, answers.y
    tiny = torch.finfo(z.dtype).tiny
    of_A = programs.A.largest().squeeze(-1)

    combined, value = _largest(programs.A.transposed(y)), (programs.b * y).sum(-1)
    size = _largest(y)
    violated = [_largest(v) for v in programs.in_cones(lambda kind, s, y: outside_dual(kind, y), y, y)]
    off = torch.stack([combined / (of_A * size + tiny), *(v / (size + tiny) for v in violated)]).amax(0)
    infeasible = (value < 0) & (off <= PROVEN)

    Pz, ray, falls = _largest(programs.curvature(z)), -programs.A.times(z), (programs.q * z).sum(-1)
    size = _largest(z)
    of_P = 1 if programs.P is None else programs.P.largest().squeeze(-1) + tiny
    violated = [_largest(v) for v in programs.in_cones(lambda kind, s, y: outside(kind, s), ray, ray)]
    off = torch.stack([Pz / (of_P * size + tiny), *(v / (of_A * size + tiny) for v in violated)]).amax(0)
    unbounded = (falls < 0) & (off <= PROVEN)
    claimed = (answers.status == Status.PRIMAL_INFEASIBLE, answers.status == Status.DUAL_INFEASIBLE)
    wrong = (claimed[0] & ~infeasible) | (claimed[1] & ~unbounded)
    return torch.where(wrong & (status != Status.CONVERGED), Status.STAGNATED, status)


def _finite(programs: ConePrograms) -> Tensor:
    """Systems (B,) whose data are numbers."""
    return torch.stack([t.flatten(1).isfinite().all(-1) for t in programs.tensors]).all(0)


def _convex(programs: ConePrograms) -> Tensor:
    """Systems (B,) whose P has no negative eigenvalue, as far as it is dense."""
    P = programs.P
    if P is None or P.pattern is not None:
        return torch.ones(len(programs.q), dtype=torch.bool, device=programs.q.device)
    symmetric = (P.values + P.values.mT) / 2
    size = torch.where(P.largest() > 0, P.largest(), 1).unsqueeze(-1)
    eye = torch.eye(symmetric.shape[-1], dtype=symmetric.dtype, device=symmetric.device)
    _, info = torch.linalg.cholesky_ex(symmetric / size + CONVEX * eye)
    return info == 0


def _largest(v: Tensor) -> Tensor:
    return v.abs().amax(-1) if v.shape[-1] else v.sum(-1)


class ConeInverse(Refusing):
    """Of the Jacobian of the conditions at a solution.

    refused : of each system (B,) the status of a derivative that does not exist; CONVERGED where there is one.
    """

    @staticmethod
    def tensors(refused: Tensor, J: Matrix) -> tuple[Tensor, ...]:
        """Those that one is made of."""
        return refused, *LU().factorize(Dense(J.values)).tensors

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.refused, *factors = tensors
        self.factors = LU.from_tensors(factors)

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """w with J w = b, or Jᵀ w = b, (*lead, B, N)."""
        return self.factors.solve(b.to(self.factors.tensors[0].dtype), adjoint).to(b.dtype)

    @property
    def suspicious(self) -> Tensor:
        return self.factors.suspicious
