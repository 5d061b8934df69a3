"""Decisions on masks. Every system decides for itself; only `finished` asks all of them at once."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.transforms import inside_functorch


def finished(mask: Tensor) -> bool:
    """Whether every entry of `mask` is True, so that a loop may stop or a fallback be left out.

    Always False inside a functorch transform: under `vmap` one Python boolean would have to answer for every sample. A
    loop runs to its limit there, with finished systems masked.
    """
    return not inside_functorch() and bool(mask.all())


def divide(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    """a / b where allowed, else 0, with gradient 0 there (both sides of the quotient are masked)."""
    return torch.where(where, a, 0) / torch.where(where, b, 1)
