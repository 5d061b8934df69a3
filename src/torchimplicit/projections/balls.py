"""The balls of the ℓ1 and the ℓ2 norm."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.projections.arguments import Number, check, like, possible
from torchimplicit.projections.polyhedra import simplex


def l1_ball(v: Tensor, radius: Number = 1.0) -> Tensor:
    """The nearest z with Σ |z| ≤ radius.

    Args:
        v: vectors (..., n).
        radius: positive; a number, or a tensor (...). Gradients flow to it.

    Raises:
        ValueError: the radius is not positive.
    Source: Duchi et al., Efficient projections onto the ℓ1-ball, ICML 2008.
    """
    check(v)
    r = like(radius, v, "l1_ball: the radius", v.shape[:-1])
    outside = v.detach().abs().sum(-1) > r.detach()
    sign = v.detach().sign()
    nearest = sign * simplex(sign * v, torch.where(r > 0, r, 1))
    z = torch.where(outside.unsqueeze(-1), nearest, v)
    return possible(z, r.detach() > 0, "l1_ball: the radius is not positive")


def l2_ball(v: Tensor, radius: Number = 1.0) -> Tensor:
    """The nearest z with ‖z‖ ≤ radius: v, or v radius / ‖v‖.

    Args:
        v: vectors (..., n).
        radius: positive; a number, or a tensor (...). Gradients flow to it.

    Raises:
        ValueError: the radius is not positive.
    """
    check(v)
    r = like(radius, v, "l2_ball: the radius", v.shape[:-1])
    outside = norm(v.detach()) > r.detach()
    length = norm(v, outside)
    z = torch.where(outside.unsqueeze(-1), v * (r / length).unsqueeze(-1), v)
    return possible(z, r.detach() > 0, "l2_ball: the radius is not positive")


def norm(x: Tensor, where: Tensor | None = None) -> Tensor:
    """‖x‖, of numbers of any size; where that is asked for, else a constant: a norm has no derivative at 0, and 0 times that would be
    NaN."""
    x = x if where is None else torch.where(where.unsqueeze(-1), x, 1)
    size = x.detach().abs().sum(-1, keepdim=True)
    size = torch.where((size > 0) & (size < torch.inf), size, 1)
    length: Tensor = size.squeeze(-1) * torch.linalg.vector_norm(x / size, dim=-1)
    return length
