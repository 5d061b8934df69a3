"""The last product of a backward, with all gradients, from one linearisation of g; the solve may have made it already."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchimplicit.autograd.products import Linearisation


class Sweep:
    """−wᵀ ∂g/∂x for some tensors x, from g linearised in z and in them; with wᵀ ∂g/∂z from the same sweep, where that is asked for."""

    def __init__(self, linearised: Linearisation) -> None:
        self.linearised = linearised
        self.w: Tensor | None = None
        self.grads: Sequence[Tensor | None] = ()

    @property
    def in_z(self) -> Linearisation:
        """g linearised in z alone."""
        return self.linearised.restricted([0])

    def product(self, w: Tensor) -> Tensor:
        """−wᵀ ∂g/∂z, and the gradients beside it."""
        self.w = w
        product, *self.grads = self.linearised.pull(-w)
        return torch.zeros_like(w) if product is None else product

    def gradients(self, minus_w: Tensor) -> Sequence[Tensor | None]:
        """Those alone."""
        return self.linearised.restricted(range(1, self.linearised.variables)).pull(minus_w)
