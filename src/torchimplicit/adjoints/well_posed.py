"""Whether z* is near enough to the root for its derivative, and whether there is one: as the linear system of the derivative tells.

Newton's correction w of z*, with (∂g/∂z) w = g(z*), is what z* is off by, in z's own units, to first order: if that is more than
the tolerance allows, the derivative is that of another point. At a multiple root the Jacobian is singular, yet regular at every z
near it: g = (z − 1)² has its root at 1, a solver stops at 1 + 1e-8, and the gradient there, 5e7, is an accident of the tolerance.
What gives it away is that at z* − w the same linear system has another solution, here twice as large; at a regular root it moves by
no more than z* does. No unit of g or z enters, nor where the root lies, and the second derivatives of g are not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.stopping import rms
from torchimplicit.transforms import occurs

DOUBTFUL = 1e-3  # of the error that the tolerance allows: from here on it is worth a look
FAR = 10  # times that error: z is off; the forward's own estimate is not questioned for less
CHANGE = 0.25  # of the solution, where z moves by w: at an m-fold root 1 − (1 − 1/m)^(m − 1), which is 1/2 or more
SLOW = 10  # amplification ‖u‖ / ‖v‖ up to which the identity less a contraction is far from singular
HINT = 1e-2  # of v: a residual of Jᵀu = v at z − w that is smaller is not worth a second solve
NOISE = 4  # in units of eps, relative to z: a change of z that is nothing but rounding
UNDEFINED = (ArithmeticError, AssertionError, RuntimeError, ValueError)  # what g may raise beside z*


def largest(x: Tensor) -> Tensor:
    """The maximum norm of each row: (B, n) -> (B,). In it no entry hides behind the others, and nothing overflows."""
    return x.abs().amax(-1) if x.shape[-1] else x.sum(-1)


def allowed(z: Tensor, rtol: float, atol: float, widths: Sequence[int]) -> Tensor:
    """The error that each number of z (B, n) may have: atol, and rtol of the norm of its leaf (of ``widths`` numbers)."""
    if len(widths) == 1:
        return (atol + rtol * rms(z)).unsqueeze(-1)
    return torch.cat(
        [allowed(leaf, rtol, atol, leaf.shape[-1:]).expand_as(leaf) for leaf in z.split(list(widths), -1)], -1
    )


def doubtful(g: Tensor, b: Tensor, x: Tensor, bound: Tensor, near_identity: bool) -> Tensor:
    """Systems (B,) whose z may be off by a part of what it is allowed: ‖J⁻¹‖, as seen from J x = b, times the residual g at z.

    Where J is the identity less a contraction, one that amplifies little is as regular as can be.
    """
    amplification = largest(x) / largest(b)
    error = amplification * largest(g)
    found = (error < torch.inf) & (error > DOUBTFUL * bound.amin(-1))
    return found & (amplification > SLOW) if near_identity else found


class Estimate(Protocol):
    """What a residual of g says of z, and one of the linear system J x = b of its solution."""

    def error(self, r: Tensor, explained: Tensor | None = None) -> Tensor:
        """By how much z is off, (B, n) or (B, 1), where the residual is r; less what a known step of z explains."""
        ...

    def step(self, r: Tensor) -> Tensor:
        """What z (B, n) is off by."""
        ...

    def movement(self, residual: Tensor) -> Tensor:
        """By how much x changes, relative to it, (B,), where b changes by the residual."""
        ...


class ByFactors:
    """From factors of J, or an approximate inverse: ``solve(b, adjoint)``."""

    def __init__(self, factors: Any, x: Tensor, adjoint: bool) -> None:
        self.factors, self.x, self.adjoint = factors, x, adjoint

    def error(self, r: Tensor, explained: Tensor | None = None) -> Tensor:
        w = self.step(r)
        return (w if explained is None else w - explained).abs()

    def step(self, r: Tensor) -> Tensor:
        w: Tensor = self.factors.solve(r, False)
        return w

    def movement(self, residual: Tensor) -> Tensor:
        return largest(self.factors.solve(residual, self.adjoint)) / largest(self.x)


class ByAdjoint:
    """From the solution u of Jᵀu = v alone: v·w = u·g is the error of z as the loss sees it, and so at most ‖v‖₁ max|w|.

    The direction of w is guessed: after plain steps g is left in the direction of the slowest one, which is that of w too; where J
    is symmetric, w and u both tend to that of its smallest eigenvalue.
    """

    def __init__(self, again: Callable[[Tensor], Tensor], v: Tensor, u: Tensor, symmetric: bool) -> None:
        self.again, self.v, self.u, self.symmetric = again, v, u, symmetric

    def error(self, r: Tensor, explained: Tensor | None = None) -> Tensor:
        seen = (self.u * r).sum(-1, keepdim=True)
        seen = seen if explained is None else seen - (self.v * explained).sum(-1, keepdim=True)
        return seen.abs() / self.v.abs().sum(-1, keepdim=True)

    def step(self, r: Tensor) -> Tensor:
        direction = self.u if self.symmetric else r
        w = direction * ((self.u * r).sum(-1) / (self.v * direction).sum(-1)).unsqueeze(-1)
        most = (
            r.shape[-1] ** 0.5 * largest(self.u) / largest(self.v) * largest(r)
        )  # v may be blind to the guessed direction
        return w * (most / largest(w)).clamp(max=1).unsqueeze(-1)

    def movement(self, residual: Tensor) -> Tensor:
        change = largest(residual) / largest(self.v)
        if not occurs(change > HINT):
            return change
        return largest(self.again(residual)) / largest(self.u)


class Look(NamedTuple):
    """What a look has found, per system (B,): whether z is off, whether there is no derivative, and the error of z beside the
    largest one that is allowed."""

    off: Tensor
    singular: Tensor
    excess: Tensor


def look(
    g: Callable[[Tensor], Tensor],
    jacobian: Jacobian,
    estimate: Estimate,
    at: tuple[Tensor, Tensor, Tensor],
    adjoint: bool,
    bound: Tensor,
    step: Tensor,
    rows: Tensor,
) -> Look:
    """Look at some ``rows`` (B,) from beside z, with one evaluation of g and one product. Where g is undefined, only z is judged.

    at : z, and b and x with J x = b, or Jᵀ x = b for the ``adjoint``.
    bound : the error that z may have.
    step : a step of z that is rounding.
    """
    z, b, x = at
    w = estimate.step(jacobian.value)
    excess = (estimate.error(jacobian.value) / bound).amax(-1)
    rows = rows & ((w.abs() / bound).amax(-1) > DOUBTFUL) & w.isfinite().all(-1)
    no = torch.zeros_like(rows)
    if not occurs(rows):
        return Look(no, no, excess)
    residual = _product(g, z - torch.where(rows.unsqueeze(-1), w, 0), x, adjoint) - b
    known = rows & residual.isfinite().all(-1)
    singular = known & (estimate.movement(torch.where(known.unsqueeze(-1), residual, 0)) > CHANGE)
    off = rows & (excess > FAR)
    if occurs(off):
        rounding = (_rounding(g, jacobian.value, estimate, z, step) / bound).amax(-1)
        off = off & ~(excess <= FAR * rounding)
    return Look(off, singular & ~off, excess)


def _product(g: Callable[[Tensor], Tensor], z: Tensor, x: Tensor, adjoint: bool) -> Tensor:
    """J(z) x, or Jᵀx; NaN where g is undefined."""
    try:
        return Jacobian(g, z).apply(x, adjoint)
    except UNDEFINED:
        return torch.full_like(z, torch.nan)


def _rounding(g: Callable[[Tensor], Tensor], value: Tensor, estimate: Estimate, z: Tensor, step: Tensor) -> Tensor:
    """The part of an error of z, (B, n) or (B, 1), that is rounding error of g: what a step that is no more does beside its slope."""
    try:
        change = g(z + step) - value
    except UNDEFINED:
        return torch.zeros_like(z)
    return estimate.error(change, step)
