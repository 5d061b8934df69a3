"""Arithmetic under masks."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import tracing, values_hidden


def divide(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    """a / b where allowed, else 0, with gradient 0 there (both sides of the quotient are masked)."""
    return torch.where(where, a, 0) / torch.where(where, b, 1)


def single(r: Tensor) -> bool:
    """Whether r (..., n) is of one real system, on the CPU, in code that is neither recorded nor transformed."""
    plain = r.device.type == "cpu" and not (r.is_complex() or torch.is_grad_enabled())
    return plain and r.numel() == r.shape[-1] and not (tracing() or values_hidden())
