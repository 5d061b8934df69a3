"""What a solved program leaves for its derivative: the inverse of the Jacobian of its optimality (KKT) conditions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchimplicit.linear.solver import Refusing
from torchimplicit.linear.vectors import from_columns, lead_shape, to_columns
from torchimplicit.programs.condensed import Condensed
from torchimplicit.programs.quadratic import Units


class KKTInverse(Refusing):
    """Of the Jacobian of the optimality conditions at a solution, in w = (z, multipliers), in the units of the data."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.refused, *units = tensors[:5]
        self.units = Units(*units)
        self.K = Condensed.of(tensors[5:])

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """w with J w = b, (*lead, B, N); J is symmetric."""
        batch, lead = self.units.z.shape[:1], lead_shape(b, self.units.z.shape[:1])
        columns = to_columns(b, batch).to(self.units.z.dtype)
        r, t = columns.split([self.units.z.shape[-2], self.units.t.shape[-2]], -2)
        held = self.K.W < torch.inf
        x, y = self.K.refined(self.units.r * r, torch.where(held, self.units.t * t, 0), 2)
        w = torch.cat([self.units.z * x, torch.where(held, self.units.y * y, -t)], -2)
        return from_columns(w, lead).to(b.dtype)
