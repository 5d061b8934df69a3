"""A window over the last m vectors of every system: what the methods with memory keep."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.transforms import inside_functorch


def store(window: Tensor, k: int, v: Tensor) -> Tensor:
    """The window (B, m, n) with v (B, n) at place k mod m; in place where nothing is recorded for autograd."""
    place = k % window.shape[1]
    # Under vmap a tensor does not show whether autograd records it outside.
    recorded = window.requires_grad or v.requires_grad or inside_functorch()
    if torch.is_grad_enabled() and recorded:
        here = torch.zeros(window.shape[1], 1, dtype=torch.bool, device=window.device)
        here[place] = True
        return torch.where(here, v.unsqueeze(1), window)
    window[:, place] = v
    return window
