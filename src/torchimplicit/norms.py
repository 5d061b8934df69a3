"""The norms in which sizes are taken."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import below, reaches, tracing

FAR = 0.5  # a z whose size, in the extent of the start, is eps to minus this is far away


def rms(v: Tensor) -> Tensor:
    """Root-mean-square norm of each row: (B, n) -> (B,)."""
    n = v.shape[-1]
    if n > 1:
        return torch.linalg.vector_norm(v, dim=-1) / n**0.5
    return v.abs().squeeze(-1) if n else v.new_zeros(v.shape[:-1])


def largest(v: Tensor) -> Tensor:
    """The maximum norm of each row: (..., n) -> (...). In it no entry hides behind the others, and nothing overflows."""
    if v.shape[-1] <= 1:
        return v.abs().squeeze(-1) if v.shape[-1] else v.sum(-1)
    return v.abs().amax(-1)


def measured(v: Tensor) -> Tensor:
    """The same, also of numbers whose squares vanish or overflow: (B, n) -> (B,)."""
    if tracing() and v.shape[-1] > 1:
        unit = v.abs().amax(-1)
        unit = torch.where((unit > 0) & (unit < torch.inf), unit, 1)
        return rms(v / unit.unsqueeze(-1)) * unit
    norm, about = rms(v), torch.finfo(v.dtype)
    if v.shape[-1] <= 1 or (below(norm, torch.inf) and not reaches(norm, about.tiny**0.5 / about.eps)):
        return norm
    unit = 1 / inverse_power_of_two(v.abs().amax(-1, keepdim=True))
    return rms(v / unit) * unit.squeeze(-1)


def extent(z0: Tensor) -> Tensor:
    """The size of a start, (B, n) -> (B,), next to 0 that of ones: what other sizes are called large beside."""
    return 1 + measured(z0)


def distant(first: Tensor, size: Tensor) -> Tensor:
    """Where a size of z, or of a number of it, is so large that what was as large as the extent of the start, ``first``, is small
    beside the digits of z."""
    return size > first / torch.finfo(size.dtype).eps ** FAR


def rounding(value: Tensor) -> Tensor:
    """Changes of an objective that rounding may hide, (B,): eps^(2/3) of its size.

    Below it, how much lower a point lies is read off the slopes on the way there, which are exact where differences of values
    are not: a value near a minimum tells it to √eps only.
    Source: Hager and Zhang, A new conjugate gradient method with guaranteed descent and an efficient line search, SIAM J. Optim.
    16 (2005), section 4 ("approximate Wolfe conditions").
    """
    return torch.finfo(value.dtype).eps ** (2 / 3) * value.abs()


def inverse_power_of_two(size: Tensor) -> Tensor:
    """The power of two that scales `size` into [1, 2); 1 where it is zero or not finite."""
    usable = size.isfinite() & (size > 0)
    exponent = torch.log2(torch.where(usable, size, 1)).floor()
    return torch.exp2(-exponent).clamp(max=torch.finfo(size.dtype).max)
