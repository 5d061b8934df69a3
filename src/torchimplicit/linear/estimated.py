"""Direct states that tell a singular matrix by the size of its inverse."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished
from torchimplicit.linear.vectors import unpatterned


class Estimated(ABC):
    """A state of A, whose inverse is measured in units in which the entries of D A C are of size one.

    units : gives those, the diagonals of D and C, (*batch_shape, n), real, when they are needed.
    pivots : (*batch_shape, n), of which one is small beside the largest where A is singular; None: nothing of that kind is at hand.
    """

    def __init__(
        self, dtype: torch.dtype, units: Callable[[], tuple[Tensor, Tensor]], pivots: Tensor | None = None
    ) -> None:
        self.dtype, self.pivots = dtype, pivots
        self._make_units = units

    @abstractmethod
    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """x with A x = b, or Aᴴ x = b: (*lead, *batch_shape, n)."""

    @cached_property
    def units(self) -> tuple[Tensor, Tensor]:
        """The diagonals of D and C."""
        return self._make_units()

    @cached_property
    def _growth(self) -> Tensor:
        """‖(D A C)⁻¹‖, as one step of the power method estimates it, (*batch_shape); not finite where there are no factors."""
        with torch.no_grad():
            d, c = self.units
            x = self.solve(unpatterned(d).to(self.dtype) / d) / c
            x = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            return torch.linalg.vector_norm(self.solve(x / c, adjoint=True) / d, dim=-1)

    @cached_property
    def suspicious(self) -> Tensor:
        """Whether the pivots of each matrix are more than 1/√eps apart, or else its inverse is larger: bool (*batch_shape)."""
        level = torch.finfo(self.dtype).eps ** 0.5
        if self.pivots is None or not self.pivots.shape[-1]:
            return ~(self._growth * level < 1)
        smallest, largest = self.pivots.abs().aminmax(dim=-1)
        return ~(smallest > level * largest)

    @cached_property
    def singular(self) -> Tensor:
        """Whether it is nearer to a singular one than rounding errors tell: bool (*batch_shape).

        Source: Higham, Accuracy and Stability of Numerical Algorithms (2002), section 15.1; the level is that of dense factors.
        """
        if self.pivots is not None and finished(~self.suspicious):
            return torch.zeros_like(self.suspicious)
        size = self.units[0].shape[-1] ** 0.5
        return self.suspicious & ~(self._growth * (8 * size * torch.finfo(self.dtype).eps) < 1)
