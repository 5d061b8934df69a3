"""Sequences that do not fall: isotonic regression."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished
from torchimplicit.projections.arguments import Number, check, like, possible, undefined


def isotonic(v: Tensor, weights: Number = 1.0) -> Tensor:
    """The z with z₁ ≤ z₂ ≤ ... nearest to v, in the norm Σ weightsᵢ zᵢ²: blocks of neighbours become their mean.

    All neighbours that violate the order are pooled at once, whole runs of them in every sequence of the batch, until there are none:
    a few rounds for most v, n − 1 at most, and always so many under ``torch.func``.

    Args:
        v: vectors (..., n).
        weights: positive; a number, or a tensor that broadcasts to v. Gradients flow to them.

    Raises:
        ValueError: a weight is not positive.
    Source: Best and Chakravarti, Active set algorithms for isotonic regression, Math. Program. 47 (1990) (pool adjacent violators).
    """
    check(v)
    w = like(weights, v, "isotonic: weights", v.shape)
    with torch.no_grad():
        block = torch.arange(v.shape[-1], device=v.device).expand(v.shape)
        joined = torch.zeros_like(v[..., 1:], dtype=torch.bool)
        for _ in range(max(v.shape[-1] - 1, 0)):
            z = _means(v, w, block)
            falls = (z[..., :-1] > z[..., 1:]) & ~joined
            if finished(~falls.flatten()):
                break
            joined = joined | falls
            starts = torch.cat([torch.zeros_like(joined[..., :1], dtype=torch.int64), (~joined).to(torch.int64)], -1)
            block = starts.cumsum(-1)
    z = _means(v, w, block) + undefined(v)
    return possible(z, (w.detach() > 0).all(-1), "isotonic: a weight is not positive")


def _means(v: Tensor, w: Tensor, block: Tensor) -> Tensor:
    """In the places of each block its weighted mean."""
    sums = torch.zeros_like(v).scatter_add(-1, block, w * v)
    totals = torch.zeros_like(v).scatter_add(-1, block, w)
    return sums.gather(-1, block) / totals.gather(-1, block)
