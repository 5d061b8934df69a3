"""The matrix of some of the unknowns: those that are not held at a bound."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchimplicit.linear.jacobian import Jacobian


class Masked(Jacobian):
    """A Jacobian J in the rows and columns of the unknowns that are free, plus ``damping`` (B, n) on their diagonal, and on that of
    those that are ``held`` (B, n) a ``unit`` (B,): they are systems of their own. All entries have places in the pattern of J, or on
    the diagonal.
    """

    def __init__(self, of: Jacobian, held: Tensor, unit: Tensor, damping: Tensor | None = None) -> None:
        super().__init__(of.g, of.z, symmetric=of.symmetric, value=of.value, memory=of.memory)
        self.of, self.held, self.unit = of, held, unit.unsqueeze(-1)
        self.damping = damping

    def matvec(self, x: Tensor) -> Tensor:
        return self._masked(self.of.matvec, x)

    def rmatvec(self, y: Tensor) -> Tensor:
        return self._masked(self.of.rmatvec, y)

    def sweep(self, vectors: Tensor, adjoint: bool) -> Tensor:
        """The products with many vectors (k, B, n)."""
        return self._masked(lambda free: self.of.sweep(free, adjoint), vectors)

    def _masked(self, product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        free = torch.where(self.held, 0, x)
        found = product(free) if self.damping is None else product(free) + self.damping * free
        return torch.where(self.held, self.unit * x, found)

    def to_dense(self) -> Tensor:
        n = self.shape[-1]
        eye = torch.eye(n, dtype=self.dtype, device=self.device)
        matrix = self.of.to_dense()
        if self.damping is not None:
            matrix = matrix + torch.diag_embed(self.damping)
        return torch.where(self.held.unsqueeze(-1) | self.held.unsqueeze(-2), self.unit.unsqueeze(-1) * eye, matrix)
