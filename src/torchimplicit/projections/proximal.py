"""Proximal maps, argmin ½‖z − v‖² + t f(z), of norms."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.projections.arguments import Number, check, like, possible
from torchimplicit.projections.balls import l1_ball, norm


def proximal_l1(v: Tensor, t: Number = 1.0) -> Tensor:
    """Of f = Σ |z|: the soft threshold, each number moved by t towards 0, and no further.

    Args:
        v: any shape.
        t: not negative; a number, or a tensor that broadcasts to v. Gradients flow to it.

    Raises:
        ValueError: t is negative.
    """
    check(v, 0)
    step = like(t, v, "proximal_l1: t", v.shape)
    z = torch.where(v.detach().abs() >= step.detach(), v - step * v.detach().sign(), 0 * v)
    return possible(z.unsqueeze(-1), step.detach() >= 0, "proximal_l1: t is negative").squeeze(-1)


def proximal_l2(v: Tensor, t: Number = 1.0) -> Tensor:
    """Of f = ‖z‖: v made shorter by t, or 0; of a group of numbers all vanish together.

    Args:
        v: vectors (..., n).
        t: not negative; a number, or a tensor (...). Gradients flow to it.

    Raises:
        ValueError: t is negative.
    """
    check(v)
    step = like(t, v, "proximal_l2: t", v.shape[:-1])
    outside = (norm(v.detach()) > step.detach()).logical_or(v.detach().isnan().any(-1))
    shorter = v * (1 - step / norm(v, outside)).unsqueeze(-1)
    z = torch.where(outside.unsqueeze(-1), shorter, 0 * v)
    return possible(z, step.detach() >= 0, "proximal_l2: t is negative")


def proximal_max(v: Tensor, t: Number = 1.0) -> Tensor:
    """Of f = max |z|: v less its projection on the ℓ1 ball of radius t (Moreau's decomposition).

    Args:
        v: vectors (..., n).
        t: positive; a number, or a tensor (...). Gradients flow to it.

    Raises:
        ValueError: t is not positive.
    """
    check(v)
    possible(v, like(t, v, "proximal_max: t", v.shape[:-1]).detach() > 0, "proximal_max: t is not positive")
    return v - l1_ball(v, t)
