"""Whether the Jacobian at z* is regular for all that is known of z*.

At a multiple root the Jacobian is singular, yet regular at every z near it: g = z² has its root at 0, a solver stops at 1e-5, and
the gradient there, 5e4, is an accident of the tolerance. What gives a multiple root away is that Newton's method converges to it
linearly: a step takes away half of the distance, and the Jacobian shrinks with it. To a whole curve of roots, such as those of
(z₁, z₁ z₂), it may converge fast; there it is the inverse of the Jacobian that grows as fast.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchimplicit.linear import Auto
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.stopping import rms

SUSPECT = 1e-3  # relative error of z* from which it is worth a look
CHANGE = 0.25  # relative change of the Jacobian by a Newton step, along it; at a double root 1/2, at a triple root 5/9
ROUNDING = 1e3  # in units of eps, relative to z: a Newton step that is shorter is rounding error and shows nothing
GROWTH = 100  # of the inverse of the Jacobian by a Newton step that converges; at a regular root it hardly changes
REDUCTION = 0.1  # of the residual by a Newton step; at a double root 1/4, at a triple root 8/27


def suspicious(residual: Tensor, z: Tensor, b: Tensor, w: Tensor) -> Tensor:
    """Systems (B,) whose z may be off by more than a little: ‖J⁻¹‖, as seen from J w = b, times the residual at z."""
    error = rms(w) / rms(b) * rms(residual)
    return (error < torch.inf) & (error > SUSPECT * rms(z))


def at_a_multiple_root(
    jacobian_at: Callable[[Tensor], Jacobian], jacobian: Jacobian, z: Tensor, rows: Tensor
) -> Tensor:
    """Those of ``rows`` (B,) where Newton's method converges linearly from z and changes the Jacobian by its own size, or
    converges faster and makes its inverse grow without bound.

    ``jacobian`` is that at z. A first step leaves an error in the singular direction only, whatever the solver's own
    was; the second one is looked at.
    """
    first, inverse_at_z = _newton(jacobian, z, rows)
    before = jacobian_at(first)
    second, inverse_at_first = _newton(before, first, rows)
    converges = torch.linalg.vector_norm(before.value, dim=-1) < torch.linalg.vector_norm(jacobian.value, dim=-1)
    on_a_curve = converges & ~(inverse_at_first <= GROWTH * inverse_at_z)
    after = jacobian_at(second)
    norm = torch.linalg.vector_norm(before.value, dim=-1)
    direction = before.value / norm.unsqueeze(-1)
    along = (after.rmatvec(direction) * (first - second)).sum(-1)  # with the Jacobian unchanged this were the norm
    changed = (along - norm).abs() > CHANGE * norm
    floor = ROUNDING * torch.finfo(z.dtype).eps * torch.linalg.vector_norm(first, dim=-1)
    linear = torch.linalg.vector_norm(after.value, dim=-1) > REDUCTION * norm
    shown = torch.linalg.vector_norm(first - second, dim=-1) > floor
    return rows & ((shown & changed & linear) | on_a_curve)


def _newton(jacobian: Jacobian, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Where a Newton step from z leads, and how large the inverse of the Jacobian is, by what it makes of a generic vector."""
    factors = Auto().factorize(jacobian)
    step = factors.solve(jacobian.value)
    n = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device)
    size = torch.linalg.vector_norm(factors.solve(1 + (n * 0.6180339887498949).frac().expand(z.shape)), dim=-1)
    return torch.where((rows & step.isfinite().all(-1)).unsqueeze(-1), z - step, z), size
