"""What the trust-region methods for minima share: whether a step is taken, and how far the next one may go."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.solvers.descent import dot
from torchimplicit.stopping import rounding

FIRST = 10  # radius over the size of z; MINPACK advises 0.1 to 100, and 3 and 10 lead to all minima of Moré, Garbow and Hillstrom
ACCEPTED = 1e-4  # the part of the predicted decrease that a step must bring


def first_radius(radius: Tensor, z: Tensor) -> Tensor:
    """A radius, where a step needs one and there was none: ten times the size of z, or ten."""
    size = torch.linalg.vector_norm(z.detach(), dim=-1)
    return torch.where(radius.isfinite(), radius, FIRST * size.clamp(min=1))


def judge(
    values: tuple[Tensor, Tensor], gradients: tuple[Tensor, Tensor], s: Tensor, predicted: Tensor, radius: Tensor
) -> tuple[Tensor, Tensor]:
    """Which systems take their step s, (B,), and the next radius of each, from the objective and its gradient before and after.

    Where rounding hides the decrease of the objective it is read off the gradients: −(g + g₊)ᵀs / 2, the trapezoidal rule.
    Source: Nocedal and Wright, Numerical Optimization (2006), algorithm 4.1; Conn, Gould and Toint, Trust-Region Methods (2000),
    section 17.4 (rounding).
    """
    value, value_new = (value.detach() for value in values)
    r, r_new = (r.detach() for r in gradients)
    decrease = value - value_new
    hidden = decrease.abs() <= rounding(value)
    decrease = torch.where(hidden, -dot(r + r_new, s) / 2, decrease)
    ratio = torch.where(predicted > 0, decrease / predicted, -1)
    ratio = torch.where(r_new.isfinite().all(-1) & ratio.isfinite(), ratio, -1)
    length = torch.linalg.vector_norm(s, dim=-1)
    at_the_edge = length > 0.8 * radius
    radius = torch.where((ratio > 0.75) & at_the_edge, 2 * length, radius)
    return ratio > ACCEPTED, torch.where(ratio < 0.25, length / 4, radius)
