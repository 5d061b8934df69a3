"""Whether z* is near enough to the root for its derivative, and whether there is one: as the linear system of the derivative tells.

Newton's correction w of z*, with (∂g/∂z) w = g(z*), is what z* is off by, in z's own units, to first order: if that is more than
the tolerance allows, the derivative is that of another point. At a multiple root the Jacobian is singular, yet regular at every z
near it: g = (z − 1)² has its root at 1, a solver stops at 1 + 1e-8, and the gradient there, 5e7, is an accident of the tolerance.
What gives it away is that at z* − w the same linear system has another solution, here twice as large; at a regular root it moves by
no more than z* does. No unit of g or z enters, nor where the root lies, and the second derivatives of g are not needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished, occurs
from torchimplicit.linear import LU, Auto
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.solver import Preconditioner
from torchimplicit.linear.vectors import unpatterned
from torchimplicit.norms import largest
from torchimplicit.tolerance import ROUNDING, Tolerance

DOUBTFUL = 2e-4  # of the error that the tolerance allows: from here on it is worth a look
HIDDEN = 8  # in units of eps, relative to z: an error that is smaller is worth none
FAR = 10  # times the error that is allowed: z is off; the forward's own estimate is not questioned for less
CHANGE = 0.25  # of the solution, where z moves by w: at an m-fold root 1 − (1 − 1/m)^(m − 1), which is 1/2 or more
STEADY = 0.1  # of the solution, where an earlier Jacobian takes the place of that at z*: less, and it changes little where z moves
SLOW = 10  # amplification ‖u‖ / ‖v‖ up to which the identity less a contraction is far from singular
LOOSE = 1e-3  # of z: a w that is larger may change the solution at a regular root too
HINT = 1e-2  # of v: a residual of Jᵀu = v at z − w that is smaller is not worth a second solve
UNDEFINED = (ArithmeticError, AssertionError, RuntimeError, ValueError)  # what g may raise beside z*


def scaled(x: Tensor) -> Tensor:
    """x (B, n) with a largest entry of 1, or 0."""
    return (x / largest(x).unsqueeze(-1)).nan_to_num()


def only(rows: Tensor, x: Tensor) -> Tensor:
    """x (B, n), 0 in other rows."""
    return x if finished(rows) else torch.where(rows.unsqueeze(-1), x, 0)


def tried(f: Callable[[], Tensor], otherwise: Tensor) -> Tensor:
    """f(), where what it evaluates is defined."""
    try:
        return f()
    except UNDEFINED:
        return otherwise


def doubt(tolerance: Tolerance, allowed: Tensor) -> Tensor | float:
    """From what part of the error that is ``allowed`` on z is worth a look: a small one, unless rounding may be more."""
    eps = torch.finfo(allowed.dtype).eps
    hidden = HIDDEN * eps / max(tolerance.rtol, ROUNDING * eps)
    return DOUBTFUL if hidden <= DOUBTFUL else (hidden * (1 - tolerance.atol / allowed)).clamp(min=DOUBTFUL)


@dataclass(frozen=True)
class LinearSolution:
    """A linear system J x = b, or Jᵀ x = b for the ``adjoint``, in the Jacobian J of a condition g at z, and its solution x.

    permitted : (z, a step from it) -> the step that may be taken in its place (:meth:`torchimplicit.condition.Kind.permitted`).
    near_identity : whether J is the identity less what may be a contraction.
    earlier : the inverse of the Jacobian at a z that was farther from the root, where there is one.
    """

    jacobian: Jacobian
    b: Tensor
    x: Tensor
    adjoint: bool
    tolerance: Tolerance
    permitted: Callable[[Tensor, Tensor], Tensor]
    near_identity: bool
    earlier: Preconditioner | None

    @cached_property
    def amplification(self) -> Tensor:
        """‖J⁻¹‖, as seen from x: (B,)."""
        return largest(self.x) / largest(self.b)

    @property
    def error(self) -> tuple[Tensor, Tensor]:
        """What z may be off by, as that tells, and what it is allowed to be: (B,) each."""
        allowed = self.tolerance.bound(self.jacobian.z)
        return self.amplification * largest(self.jacobian.value), allowed.amin(-1) if self.tolerance.leaves else allowed

    def doubtful(self, rows: Tensor, size: Tensor, allowed: Tensor) -> Tensor | None:
        """Those of ``rows`` (B,) that are worth a look, if any. z is off by ``size``: that may be a part of what it is allowed to be,
        or 0, where rounding hides what it is; and x may change with that. It does not where J is the identity less a contraction and
        amplifies little, nor where an earlier J, of a z that was farther away, gives nearly the same x. (An identical x is no
        evidence: z has not moved.)"""
        excess = size / allowed
        rows = rows & ((excess > doubt(self.tolerance, allowed)) | (size == 0))
        if not occurs(rows):
            return None
        far = excess > FAR
        if self.near_identity:
            rows = rows & (far | (self.amplification > SLOW))
        if self.earlier is not None:
            moved, x = largest(torch.stack((self.earlier.solve(self.b, self.adjoint) - self.x, self.x)))
            change = moved / x
            steady = (change > HIDDEN * torch.finfo(change.dtype).eps) & (change <= STEADY)
            rows = rows & (steady <= far)  # if it is steady, z is far
        return rows if occurs(rows) else None


class ErrorModel(Protocol):
    """What a residual of g says of z, and one of the linear system J x = b of its solution."""

    def correction(self, r: Tensor) -> Tensor:
        """What z (B, n) is off by, where the residual is r."""
        ...

    def excess(self, r: Tensor, known: Tensor | float = 0.0) -> Tensor:
        """How much that is, less a ``known`` step of z, in parts of what is allowed, (B,)."""
        ...

    def weakest(self) -> Tensor:
        """About the direction (B, n) in which z can move farthest for a small residual, with a largest entry of 1."""
        ...

    def movement(self, residual: Tensor) -> Tensor:
        """By how much x changes, relative to it, (B,), where b changes by the residual."""
        ...


class ByFactors:
    """From factors of J, or an approximate inverse: ``solve(b, adjoint)``."""

    def __init__(self, factors: Preconditioner, at: LinearSolution) -> None:
        self.factors, self.at = factors, at

    def correction(self, r: Tensor) -> Tensor:
        return self.factors.solve(r, False)

    def excess(self, r: Tensor, known: Tensor | float = 0.0) -> Tensor:
        size, allowed = self.at.tolerance.largest(self.correction(r) - known, self.at.jacobian.z)
        return size / allowed

    def weakest(self) -> Tensor:
        return scaled(self.factors.solve(scaled(self.at.x), False) if self.at.adjoint else self.at.x)

    def movement(self, residual: Tensor) -> Tensor:
        return largest(self.factors.solve(residual, self.at.adjoint)) / largest(self.at.x)


class ByAdjoint:
    """From the solution u of Jᵀu = v alone: v·w = u·g is the error of z as the loss sees it, and a lower bound for that of z.

    The direction of w is guessed: after plain steps g is left in the direction of the slowest one, which is that of w too; where J
    is symmetric, w and u both tend to that of its smallest eigenvalue. ``again`` solves Jᵀu = r roughly.
    """

    def __init__(self, again: Callable[[Tensor], Tensor], at: LinearSolution) -> None:
        self.again, self.v, self.u, self.symmetric = again, at.b, at.x, at.jacobian.symmetric
        self.seen = self.v.abs().sum(-1)  # by the loss, of an error of 1 in every number
        self.allowed = (at.tolerance.each(at.jacobian.z) * self.v.abs()).sum(-1) / self.seen

    def correction(self, r: Tensor) -> Tensor:
        direction = self.u if self.symmetric else r
        w = direction * ((self.u * r).sum(-1) / (self.v * direction).sum(-1)).unsqueeze(-1)
        # v may be blind to the guessed direction
        most = r.shape[-1] ** 0.5 * largest(self.u) / largest(self.v) * largest(r)
        return w * (most / largest(w)).clamp(max=1).unsqueeze(-1)

    def excess(self, r: Tensor, known: Tensor | float = 0.0) -> Tensor:
        error = (self.u * r).sum(-1) - (self.v * known).sum(-1)
        return error.abs() / self.seen / self.allowed

    def weakest(self) -> Tensor:
        return scaled(self.u)

    def movement(self, residual: Tensor) -> Tensor:
        change = largest(residual) / largest(self.v)
        return largest(self.again(residual)) / largest(self.u) if occurs(change > HINT) else change


class Diagnosis(NamedTuple):
    """What a look has found, per system (B,), and the evaluations that it took.

    off : whether the derivative is that of another point: z is off by more than ``FAR`` tolerances, or by less, but the derivative
        changes on the way.
    singular : whether there is no derivative.
    excess : by how many tolerances z is off.
    """

    off: Tensor
    singular: Tensor
    excess: Tensor
    evaluations: int


def diagnosed(at: LinearSolution, model: ErrorModel, rows: Tensor, suspects: Tensor | None = None) -> Diagnosis | None:
    """A look at those of some ``rows`` (B,) that are doubtful, or among the ``suspects`` for another reason, if any, from beside z,
    with one evaluation of g and one product. Where g is undefined, only z is judged."""
    z, value, eps = at.jacobian.z, at.jacobian.value, torch.finfo(at.b.dtype).eps
    w = model.correction(value)
    size, allowed = at.tolerance.largest(w, z)  # also what a loss does not see
    doubtful = at.doubtful(rows, size, allowed)
    if suspects is not None:
        doubtful = rows & suspects if doubtful is None else doubtful | (rows & suspects)
    if doubtful is None:
        return None
    excess = model.excess(value)
    sizes = Tolerance(1.0, 0.0, at.tolerance.leaves).each(z)
    # z is known to its rounding only, and where a residual is 0, what that hides may be √eps of a double root.
    w = w + torch.where(size == 0, eps**0.5, HIDDEN * eps).unsqueeze(-1) * sizes * model.weakest()
    rows = doubtful & (largest(w) < torch.inf)
    beside = z + at.permitted(z, -only(rows, w))
    residual = tried(lambda: at.jacobian.moved(beside).apply(at.x, at.adjoint) - at.b, torch.full_like(z, torch.nan))
    known = rows & (largest(residual) < torch.inf)
    singular = known & (model.movement(only(known, residual)) > CHANGE)
    off = rows & (excess > FAR)
    evaluations = 1
    if occurs(off):
        evaluations += 1
        own = torch.where(z != 0, z.abs(), sizes)  # what is rounding of a large number would be a move of a small one
        step = at.permitted(z, ROUNDING * eps * own * unpatterned(z))
        off = off & ~(excess <= FAR * _rounding(at, model, step))
    singular = singular & ~off
    if occurs(singular) and occurs(loose := singular & (w.abs() > LOOSE * sizes).any(-1)):
        evaluations += 2
        off = off | (loose & ~_persists(at, beside))
    return Diagnosis(off, singular & ~off, excess, evaluations)


def _persists(at: LinearSolution, z: Tensor) -> Tensor:
    """Systems (B,) where Newton's step from z changes the solution of J x = b as much as the step that has led to z did."""

    def persists() -> Tensor:
        jacobian = at.jacobian.moved(z)
        factors = LU().factorize(jacobian)
        x = factors.solve(at.b, at.adjoint)
        further = jacobian.moved(z + at.permitted(z, -factors.solve(jacobian.value)))
        change = factors.solve(further.apply(x, at.adjoint) - at.b, at.adjoint)
        return ~(largest(change) <= CHANGE * largest(x))

    no = torch.zeros_like(z[..., 0], dtype=torch.bool)
    return no if z.shape[-1] > Auto.fallback_limit else tried(persists, no)


def _rounding(at: LinearSolution, model: ErrorModel, step: Tensor) -> Tensor:
    """The part of an error of z, (B,) in tolerances, that is rounding error of g: what a step of no more does beside its slope."""
    z, value = at.jacobian.z, at.jacobian.value
    return model.excess(tried(lambda: at.jacobian.g(z + step) - value, torch.full_like(z, torch.nan)), step)
