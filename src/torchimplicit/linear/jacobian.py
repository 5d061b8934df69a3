"""The Jacobian of a function at a point, as an operator: linearised once, then only products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchimplicit.linear.operators import LinearOperator
from torchimplicit.products import Linearisation

SWEEP_ENTRIES = 2**24  # of the cotangents in one batched sweep: bounds the memory of `to_dense`


class Jacobian(LinearOperator):
    """∂g/∂z at z, for g: (*batch_shape, n) -> (*batch_shape, m) whose rows are independent of each other.

    Attributes:
        value: g(z).
        products: how many products were taken so far (a dense matrix counts one for each row).

    With grad mode on, all products can be differentiated again. A ``linearisation`` of g in z that is already at hand is
    used as it is.
    """

    def __init__(
        self,
        g: Callable[[Tensor], Tensor],
        z: Tensor,
        *,
        symmetric: bool = False,
        linearisation: Linearisation | None = None,
    ) -> None:
        self._linearisation = Linearisation(g, (z,)) if linearisation is None else linearisation
        self.value = self._linearisation.value
        self.products = 0
        shape = (*z.shape[:-1], self.value.shape[-1], z.shape[-1])
        super().__init__(shape, z.dtype, z.device, symmetric=symmetric)
        self._zero = torch.zeros_like(z)

    def count(self, products: int) -> None:
        """Take note of products."""
        self.products += products

    def matvec(self, x: Tensor) -> Tensor:
        """∂g/∂z x, the derivative of the pullback."""
        self.count(1)
        return self._linearisation.push((x,))

    def rmatvec(self, y: Tensor) -> Tensor:
        """(∂g/∂z)ᵀ y, one vector-Jacobian product."""
        self.count(1)
        return self._pull(y)

    def to_dense(self) -> Tensor:
        """(*batch_shape, m, n): a sweep of one-hot cotangents gives one row of every matrix of the batch at a time."""
        m = self.shape[-2]
        if not self._zero.numel():
            return self._zero.new_zeros(self.shape)
        self.count(m)
        eye = torch.eye(m, dtype=self.dtype, device=self.device)
        cotangents = eye.reshape(m, *(1,) * len(self.batch_shape), m).expand(m, *self.batch_shape, m)
        rows = max(1, SWEEP_ENTRIES // max(1, cotangents[0].numel()))
        parts = [self._rows(part) for part in cotangents.split(rows)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).movedim(0, -2)

    def _rows(self, cotangents: Tensor) -> Tensor:
        try:
            return self._linearisation.pull_batch(cotangents)
        except RuntimeError:  # an operation in g without a batching rule; a real fault is raised again below
            return torch.stack([self._pull(u) for u in cotangents])

    def _pull(self, y: Tensor) -> Tensor:
        (x,) = self._linearisation.pull(y)
        return self._zero if x is None else x
