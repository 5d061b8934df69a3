"""Direct states that tell a singular matrix by the size of its inverse."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from torchimplicit.linear.vectors import unpatterned


class Estimated(ABC):
    """A state of A, whose inverse is measured in units in which the entries of D A C are of size one.

    d, c : those units, the diagonals of D and C, (*batch_shape, n), real.
    """

    def __init__(self, dtype: torch.dtype, d: Tensor, c: Tensor) -> None:
        self.dtype, self.d, self.c = dtype, d, c

    @abstractmethod
    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """x with A x = b, or Aᴴ x = b: (*lead, *batch_shape, n)."""

    @cached_property
    def _growth(self) -> Tensor:
        """‖(D A C)⁻¹‖, as one step of the power method estimates it, (*batch_shape); not finite where there are no factors."""
        with torch.no_grad():
            x = self.solve(unpatterned(self.d).to(self.dtype) / self.d) / self.c
            x = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            return torch.linalg.vector_norm(self.solve(x / self.c, adjoint=True) / self.d, dim=-1)

    @property
    def suspicious(self) -> Tensor:
        """Whether each matrix is nearer to a singular one than √eps: bool (*batch_shape)."""
        return ~(self._growth * torch.finfo(self.dtype).eps ** 0.5 < 1)

    @property
    def singular(self) -> Tensor:
        """Whether it is nearer than rounding errors tell: bool (*batch_shape).

        Source: Higham, Accuracy and Stability of Numerical Algorithms (2002), section 15.1; the level is that of dense factors.
        """
        return ~(self._growth * (8 * self.d.shape[-1] ** 0.5 * torch.finfo(self.dtype).eps) < 1)
