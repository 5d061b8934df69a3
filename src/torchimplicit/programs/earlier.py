"""The solution of an earlier program as a start: where the same constraints hold z, or nearly, the rest is one linear system."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchimplicit.layout import Layout, describe
from torchimplicit.programs.info import Dual
from torchimplicit.programs.outside import Answers
from torchimplicit.programs.quadratic import Data
from torchimplicit.solution import Solution


@dataclass(frozen=True)
class Earlier:
    """What was found for programs of the same sizes: z (B, n), and multipliers (B, m + k + n), those of inequalities, equalities and
    bounds."""

    z: Tensor
    multipliers: Tensor

    def of_systems(self, which: Any) -> Earlier:
        """Some systems of the batch."""
        return Earlier(self.z[which], self.multipliers[which])

    def programs(self, data: Data) -> Answers:
        """The same as if it were an answer; what had no solution has none."""
        z, multipliers = self.z.to(data.Q.dtype), self.multipliers.to(data.Q.dtype)
        return Answers(z, multipliers, torch.cat([z, multipliers], -1).isfinite().all(-1))


def earlier(start: object, layout: Layout) -> Earlier:
    """The ``start=`` of a program whose z and multipliers have this layout; raises where it is no solution, or of other sizes."""
    dual = getattr(start.info, "dual", None) if isinstance(start, Solution) else None
    if not isinstance(start, Solution) or not isinstance(dual, Dual):
        raise TypeError(
            f"start must be what ti.quadratic_program has returned for a program like this one; got {describe(start)}."
        )
    parts: list[Tensor] = []
    names = ("z", "info.dual.inequality", "info.dual.equality", "info.dual.bounds")
    for name, part, shape in zip(names, (start.value, *dual), layout.shapes, strict=True):
        try:
            fits = part.shape[-1] == shape[-1] and torch.broadcast_shapes(part.shape, shape) == shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"start is the solution of programs of other sizes: its {name} has shape {tuple(part.shape)}, and the one looked for "
                f"{tuple(shape)}."
            )
        parts.append(part.detach().to(layout.device).expand(shape).reshape(layout.batch, shape[-1]))
    return Earlier(parts[0], torch.cat(parts[1:], -1))
