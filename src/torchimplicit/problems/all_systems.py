"""The data of all systems of a batch, those of the vmaps around it included, for a search that takes them at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torchimplicit.condition import Vmap


def of_all_systems(
    tensors: Sequence[Tensor], core: Sequence[int], vmaps: Sequence[Vmap], batch_shape: torch.Size
) -> list[Tensor]:
    """Each tensor as (B, ...) in float64, for the systems ``batch_shape`` of every sample of nested vmaps, outermost first.

    ``core`` : how many dimensions of each tensor follow those of the batch, which broadcast.
    """
    sizes = [vmap.size for vmap in vmaps]
    parts = []
    for i, (t, last) in enumerate(zip(tensors, core, strict=True)):
        dims = [vmap.dims[i] for vmap in vmaps]
        carried = sum(d is not None for d in dims)
        own, inner = t.shape[carried : t.ndim - last], t.shape[t.ndim - last :]
        padded = (1,) * (len(batch_shape) - len(own)) + tuple(own)
        lead = [1 if d is None else size for d, size in zip(dims, sizes, strict=True)]
        t = t.detach().to(torch.float64).reshape(*lead, *padded, *inner)
        parts.append(t.expand(*sizes, *batch_shape, *inner).reshape(math.prod(sizes) * batch_shape.numel(), *inner))
    return parts
