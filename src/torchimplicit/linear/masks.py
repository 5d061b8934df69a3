"""Arithmetic under masks."""

from __future__ import annotations

import torch
from torch import Tensor


def divide(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    """a / b where allowed, else 0, with gradient 0 there (both sides of the quotient are masked)."""
    return torch.where(where, a, 0) / torch.where(where, b, 1)
