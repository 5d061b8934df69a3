"""Whether z* is near enough to the root for its derivative, and whether there is one: as the linear system of the derivative tells.

Newton's correction w of z*, with (∂g/∂z) w = g(z*), is what z* is off by, in z's own units, to first order: if that is more than
the tolerance allows, the derivative is that of another point. At a multiple root the Jacobian is singular, yet regular at every z
near it: g = (z − 1)² has its root at 1, a solver stops at 1 + 1e-8, and the gradient there, 5e7, is an accident of the tolerance.
What gives it away is that at z* − w the same linear system has another solution, here twice as large; at a regular root it moves by
no more than z* does. No unit of g or z enters, nor where the root lies, and the second derivatives of g are not needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from torchimplicit.condition import Flat
from torchimplicit.linear import LU, Auto
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.vectors import unpatterned
from torchimplicit.tolerance import ROUNDING, Tolerance
from torchimplicit.transforms import occurs

DOUBTFUL = 2e-4  # of the error that the tolerance allows: from here on it is worth a look
HIDDEN = 8  # in units of eps, relative to z: an error that is smaller is worth none
FAR = 10  # times the error that is allowed: z is off; the forward's own estimate is not questioned for less
CHANGE = 0.25  # of the solution, where z moves by w: at an m-fold root 1 − (1 − 1/m)^(m − 1), which is 1/2 or more
STEADY = 0.1  # of the solution, where an earlier Jacobian takes the place of that at z*: less, and it changes little where z moves
SLOW = 10  # amplification ‖u‖ / ‖v‖ up to which the identity less a contraction is far from singular
LOOSE = 1e-3  # of z: a w that is larger may change the solution at a regular root too
HINT = 1e-2  # of v: a residual of Jᵀu = v at z − w that is smaller is not worth a second solve
UNDEFINED = (ArithmeticError, AssertionError, RuntimeError, ValueError)  # what g may raise beside z*


def largest(x: Tensor) -> Tensor:
    """The maximum norm of each row: (B, n) -> (B,). In it no entry hides behind the others, and nothing overflows."""
    return x.abs().amax(-1) if x.shape[-1] else x.sum(-1)


def scaled(x: Tensor) -> Tensor:
    """x (B, n) with a largest entry of 1, or 0."""
    return (x / largest(x).unsqueeze(-1)).nan_to_num()


def doubt(tolerance: Tolerance, allowed: Tensor) -> Tensor:
    """From what error of z on it is worth a look, where so much is ``allowed``: a small part of that, unless rounding may be more."""
    eps = torch.finfo(allowed.dtype).eps
    rounding = (allowed - tolerance.atol).clamp(min=0) * (HIDDEN * eps / max(tolerance.rtol, ROUNDING * eps))
    return rounding.maximum(DOUBTFUL * allowed)


def doubtful(g: Tensor, z: Tensor, b: Tensor, x: Tensor, tolerance: Tolerance, near_identity: bool) -> Tensor:
    """Systems (B,) whose z may be off by a part of what it may be: ‖J⁻¹‖, as seen from J x = b, times the residual g at z.

    A residual of exactly 0 says nothing of z but that its rounding is hidden, see :func:`look`. Where J is the identity less a
    contraction, one that amplifies little is as regular as can be.
    """
    amplification = largest(x) / largest(b)
    error = amplification * largest(g)
    bound = tolerance.bound(z)
    bound = bound.amin(-1) if tolerance.leaves else bound
    found = ((error < torch.inf) & (error > doubt(tolerance, bound))) | (g == 0).all(-1)
    return found & ((amplification > SLOW) | (error > FAR * bound)) if near_identity else found


class Estimate(Protocol):
    """What a residual of g says of z, and one of the linear system J x = b of its solution."""

    def excess(self, r: Tensor, explained: Tensor | None = None) -> Tensor:
        """By how many tolerances z is off, (B,), where the residual is r; less what a known step of z explains."""
        ...

    def step(self, r: Tensor) -> Tensor:
        """What z (B, n) is off by."""
        ...

    def weakest(self) -> Tensor:
        """About the direction (B, n) in which z can move farthest for a small residual, with a largest entry of 1."""
        ...

    def movement(self, residual: Tensor) -> Tensor:
        """By how much x changes, relative to it, (B,), where b changes by the residual."""
        ...


class ByFactors:
    """From factors of J, or an approximate inverse: ``solve(b, adjoint)``."""

    def __init__(self, factors: Any, tolerance: Tolerance, z: Tensor, x: Tensor, adjoint: bool) -> None:
        self.factors, self.tolerance, self.z, self.x, self.adjoint = factors, tolerance, z, x, adjoint

    def excess(self, r: Tensor, explained: Tensor | None = None) -> Tensor:
        w = self.step(r)
        size, bound = self.tolerance.largest(w if explained is None else w - explained, self.z)
        return size / bound

    def step(self, r: Tensor) -> Tensor:
        w: Tensor = self.factors.solve(r, False)
        return w

    def weakest(self) -> Tensor:
        return scaled(self.step(scaled(self.x)) if self.adjoint else self.x)

    def movement(self, residual: Tensor) -> Tensor:
        return largest(self.factors.solve(residual, self.adjoint)) / largest(self.x)


class ByAdjoint:
    """From the solution u of Jᵀu = v alone: v·w = u·g is the error of z as the loss sees it, and a lower bound for that of z.

    The direction of w is guessed: after plain steps g is left in the direction of the slowest one, which is that of w too; where J
    is symmetric, w and u both tend to that of its smallest eigenvalue. ``again`` solves Jᵀu = r roughly.
    """

    def __init__(
        self, again: Callable[[Tensor], Tensor], tolerance: Tolerance, z: Tensor, v: Tensor, u: Tensor, symmetric: bool
    ) -> None:
        self.again, self.v, self.u, self.symmetric = again, v, u, symmetric
        self.seen = (each(tolerance, z) * v.abs()).sum(-1)  # by the loss, of the error that z may have

    def excess(self, r: Tensor, explained: Tensor | None = None) -> Tensor:
        error = (self.u * r).sum(-1)
        return (error if explained is None else error - (self.v * explained).sum(-1)).abs() / self.seen

    def step(self, r: Tensor) -> Tensor:
        direction = self.u if self.symmetric else r
        w = direction * ((self.u * r).sum(-1) / (self.v * direction).sum(-1)).unsqueeze(-1)
        # v may be blind to the guessed direction
        most = r.shape[-1] ** 0.5 * largest(self.u) / largest(self.v) * largest(r)
        return w * (most / largest(w)).clamp(max=1).unsqueeze(-1)

    def weakest(self) -> Tensor:
        return scaled(self.u)

    def movement(self, residual: Tensor) -> Tensor:
        change = largest(residual) / largest(self.v)
        return largest(self.again(residual)) / largest(self.u) if occurs(change > HINT) else change


def each(tolerance: Tolerance, z: Tensor) -> Tensor:
    """The error that each number of z (B, n) may have."""
    bound = tolerance.bound(z)
    if not tolerance.leaves:
        return bound.unsqueeze(-1).expand_as(z)
    return bound.repeat_interleave(torch.tensor(tolerance.leaves, device=z.device), -1)


def changes_little(x: Tensor, earlier: Tensor) -> Tensor:
    """Systems (B,) whose solution x of J x = b was nearly the same with the Jacobian of an ``earlier`` z, farther from the root. One
    that was the same to rounding says nothing: z has not moved."""
    change = largest(earlier - x) / largest(x)
    return (change > HIDDEN * torch.finfo(x.dtype).eps) & (change <= STEADY)


class Look(NamedTuple):
    """What a look has found, per system (B,): whether z is off, whether there is no derivative, and by how many tolerances z is off;
    and the evaluations that it took."""

    off: Tensor
    singular: Tensor
    excess: Tensor
    evaluations: int


def look(
    g: Flat,
    jacobian: Jacobian,
    estimate: Estimate,
    at: tuple[Tensor, Tensor, Tensor],
    adjoint: bool,
    tolerance: Tolerance,
    rows: Tensor,
    earlier: Tensor | None,
    permitted: Callable[[Tensor, Tensor], Tensor],
) -> Look:
    """Look at some ``rows`` (B,) from beside z, with one evaluation of g and one product. Where g is undefined, only z is judged.

    at : z, and b and x with J x = b, or Jᵀ x = b for the ``adjoint``.
    earlier : the solution with the Jacobian of a z that was farther from the root, where there is one: then nothing need be evaluated.
    permitted : (z, a step from it) -> the step that may be taken in its place (:meth:`torchimplicit.condition.Kind.permitted`).
    """
    z, b, x = at
    w = estimate.step(jacobian.value)
    excess = estimate.excess(jacobian.value)
    size, allowed = tolerance.largest(w, z)
    exact = rows & (jacobian.value == 0).all(-1)
    rows = rows & (exact | (size > doubt(tolerance, allowed)))
    if earlier is not None:
        rows = rows & ~(changes_little(x, earlier) & (excess <= FAR))
    no = torch.zeros_like(rows)
    if not occurs(rows):
        return Look(no, no, excess, 0)
    # z is known to its rounding only, and where a residual is 0, what rounding hides may be √eps of a double root.
    hidden = torch.where(exact, torch.finfo(z.dtype).eps ** 0.5, HIDDEN * torch.finfo(z.dtype).eps).unsqueeze(-1)
    w = w + hidden * each(replace(tolerance, rtol=1.0, atol=0.0), z) * estimate.weakest()
    rows = rows & w.isfinite().all(-1)
    beside = z + permitted(z, -torch.where(rows.unsqueeze(-1), w, 0))
    residual = _product(g, beside, x, adjoint) - b
    known = rows & residual.isfinite().all(-1)
    singular = known & (estimate.movement(torch.where(known.unsqueeze(-1), residual, 0)) > CHANGE)
    off = rows & (excess > FAR)
    evaluations = 1
    if occurs(off):
        evaluations += 1
        step = permitted(z, each(replace(tolerance, rtol=0.0, atol=0.0), z) * unpatterned(z))
        off = off & ~(excess <= FAR * _rounding(g, jacobian.value, estimate, z, step))
    loose = singular & ~off & (w.abs() > LOOSE * each(replace(tolerance, rtol=1.0, atol=0.0), z)).any(-1)
    if occurs(loose):
        evaluations += 2
        off = off | (loose & ~_persists(g, beside, b, adjoint, permitted))
    return Look(off, singular & ~off, excess, evaluations)


def _persists(g: Flat, z: Tensor, b: Tensor, adjoint: bool, permitted: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Systems (B,) where Newton's step from z changes the solution of J x = b as much as the step that has led to z did."""
    if z.shape[-1] > Auto.fallback_limit:
        return torch.zeros_like(z[..., 0], dtype=torch.bool)
    try:
        jacobian = Jacobian(g, z)
        factors = LU().factorize(jacobian)
    except UNDEFINED:
        return torch.zeros_like(z[..., 0], dtype=torch.bool)
    x = factors.solve(b, adjoint)
    residual = _product(g, z + permitted(z, -factors.solve(jacobian.value)), x, adjoint) - b
    return ~(largest(factors.solve(residual, adjoint)) <= CHANGE * largest(x))


def _product(g: Flat, z: Tensor, x: Tensor, adjoint: bool) -> Tensor:
    """J(z) x, or Jᵀx; NaN where g is undefined."""
    try:
        return Jacobian(g, z).apply(x, adjoint)
    except UNDEFINED:
        return torch.full_like(z, torch.nan)


def _rounding(g: Flat, value: Tensor, estimate: Estimate, z: Tensor, step: Tensor) -> Tensor:
    """The part of an error of z, (B,) in tolerances, that is rounding error of g: what a step of no more does beside its slope."""
    try:
        change = g(z + step) - value
    except UNDEFINED:
        return torch.zeros_like(z[..., 0])
    return estimate.excess(change, step)
