"""A window over the last m vectors of every system: what the methods with memory keep."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import inside_functorch, tracing

Count = int | Tensor  # of steps: a tensor while a graph is made


def start_of_count(z: Tensor) -> Count:
    """Zero."""
    return torch.zeros((), dtype=torch.int64, device=z.device) if tracing() else 0


def store(window: Tensor, k: Count, v: Tensor, less: Tensor | None = None) -> Tensor:
    """The window (..., m, n) with v (..., n), or v − less, at place k mod m; in place where nothing is recorded for autograd."""
    place = k % window.shape[-2]
    if isinstance(place, Tensor):
        here = torch.arange(window.shape[-2], device=window.device).unsqueeze(-1) == place
        return torch.where(here, (v if less is None else v - less).unsqueeze(-2), window)
    # Under vmap a tensor does not show whether autograd records it outside.
    recorded = window.requires_grad or v.requires_grad or (less is not None and less.requires_grad)
    if torch.is_grad_enabled() and (recorded or inside_functorch()):
        here = torch.zeros(window.shape[-2], 1, dtype=torch.bool, device=window.device)
        here[place] = True
        return torch.where(here, (v if less is None else v - less).unsqueeze(-2), window)
    if less is None or inside_functorch():
        window[..., place, :] = v if less is None else v - less
    else:
        torch.sub(v, less, out=window[..., place, :])
    return window


def store_rows(window: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> Tensor:
    """The same where each system has its own k (B,), and only some store."""
    place = (k % window.shape[1]).unsqueeze(-1)
    here = (torch.arange(window.shape[1], device=window.device) == place) & rows.unsqueeze(-1)
    return torch.where(here.unsqueeze(-1), v.unsqueeze(1), window)


def newest_first(window: Tensor, k: Tensor) -> Tensor:
    """The window (B, m, n) in the order in which it was stored by :func:`store_rows`, the latest first."""
    m = window.shape[1]
    order = (k.unsqueeze(-1) - 1 - torch.arange(m, device=window.device)) % m
    return window.gather(1, order.unsqueeze(-1).expand_as(window))
