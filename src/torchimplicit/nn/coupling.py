"""Whether the first dimension of z is a batch for a module: whether what it returns for one row depends on other rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchimplicit.capture.autocast import Autocast, full_precision
from torchimplicit.capture.randomness import differ, generators_kept
from torchimplicit.private import pytree


def couples_rows(module: nn.Module, z: Any, args: tuple[Any, ...]) -> bool:
    """Whether some row of ``module(z, *args)`` changes when others of z do; False where that cannot be seen.

    Every second row of z is changed, and the rows between them are looked at.
    """
    leaves = pytree.tree_leaves(z)
    if not leaves or any(leaf.ndim == 0 for leaf in leaves) or len(leaves[0]) < 2:
        return False
    device = leaves[0].device
    autocast = Autocast.now(device.type)
    with torch.no_grad(), full_precision(device.type), autocast.restored(), generators_kept(device):
        try:
            value, other = _rows(module(z, *args)), _rows(module(pytree.tree_map(_every_second_changed, z), *args))
            suspected = bool(differ(value, other)[1::2].any())
            # A module that draws random numbers, or changes its own state, does not give the same twice.
            return suspected and not bool(differ(value, _rows(module(z, *args))).any())
        except Exception:  # at another z it may not be defined; what is wrong at z itself shows in the solve
            return False


def _every_second_changed(leaf: Tensor) -> Tensor:
    leaf = leaf.detach()
    changed = leaf.clone()
    shift = torch.linspace(0.5, 1, leaf.numel(), dtype=torch.float32, device=leaf.device).reshape(leaf.shape)
    changed[::2] += shift[::2].to(leaf)
    return changed


def _rows(out: Any) -> Tensor:
    parts = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in pytree.tree_leaves(out)]
    return torch.cat([part.detach().reshape(len(part), -1) for part in parts], dim=1)
