"""Whether the Jacobian at z* is regular for all that is known of z*.

At a multiple root the Jacobian is singular, yet regular at every z near it: g = z² has its root at 0, a solver stops at 1e-5, and
the gradient there, 5e4, is an accident of the tolerance. What gives a multiple root away is that Newton's method converges to it
linearly: a step takes away half of the distance, and the Jacobian shrinks with it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchimplicit.linear import Auto
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.stopping import rms

SUSPECT = 1e-3  # relative error of z* from which it is worth a look
CHANGE = 0.25  # relative change of the Jacobian over the error of z*; at a double root it is 1/2, at a triple root 5/9
REDUCTION = 0.03  # of the residual by two Newton steps; at a double root 1/16, at a triple root 0.088


def suspicious(jacobian: Jacobian, z: Tensor, b: Tensor, w: Tensor) -> Tensor:
    """Systems (B,) whose z may be off by more than a little: ‖J⁻¹‖, as seen from J w = b, times the residual at z."""
    amplification = torch.linalg.vector_norm(w, dim=-1) / torch.linalg.vector_norm(b, dim=-1)
    error = amplification * rms(jacobian.value)
    return error.isfinite() & (error > SUSPECT * rms(z))


def at_a_multiple_root(
    g: Callable[[Tensor], Tensor], jacobian: Jacobian, z: Tensor, w: Tensor, transpose: bool, rows: Tensor
) -> Tensor:
    """Those of ``rows`` (B,) where two Newton steps from z converge linearly and change the Jacobian by its own size.

    ``jacobian`` is that of g at z, and w the solution of the system that was asked of it (or of its transpose).
    """
    norm = torch.linalg.vector_norm
    first = _newton(jacobian, z, rows)
    beside = Jacobian(g, first)
    before, after = (operator.apply(w, transpose) for operator in (jacobian, beside))
    changed = norm(after - before, dim=-1) > CHANGE * norm(before, dim=-1)
    rows = rows & changed
    if not bool(rows.any()):
        return rows
    second = _newton(beside, first, rows)
    return rows & (norm(g(second), dim=-1) > REDUCTION * norm(jacobian.value, dim=-1))


def _newton(jacobian: Jacobian, z: Tensor, rows: Tensor) -> Tensor:
    step = Auto().factorize(jacobian).solve(jacobian.value)
    return torch.where((rows & step.isfinite().all(-1)).unsqueeze(-1), z - step, z)
