"""The error of z as seen from outside a method: by how the residual has changed with z."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.norms import rms
from torchimplicit.solvers.equations import Estimate, growth
from torchimplicit.tolerance import Tolerance


class Secant:
    """The :class:`Estimate` of a method that makes none itself: the residual times ‖Δz‖ / ‖Δr‖ of the last step that changed z,
    for each leaf of z by itself. In one unknown that is the correction of the secant method.
    """

    def __init__(self, tolerance: Tolerance) -> None:
        self.leaves = tolerance.leaves
        self.last: tuple[Tensor, Tensor] | None = None
        self.gains: list[Tensor] = []

    def __call__(self, z: Tensor, r: Tensor, state: Any) -> Estimate:
        """At z, where the residual is r."""
        z, r = z.detach(), r.detach()
        if self.last is None or self.last[0].shape != z.shape:  # at the start, or where other systems have gone
            self.last, self.gains = (z, r), []
            return Estimate(r)
        changes = [self._parts(new - old) for new, old in zip((z, r), self.last, strict=True)]
        gains = [growth(rms(dz), rms(dr)) for dz, dr in zip(*changes, strict=True)]
        if self.gains:
            gains = [torch.where(new.isfinite(), new, old) for new, old in zip(gains, self.gains, strict=True)]
        self.last, self.gains = (z, r), gains
        largest = torch.finfo(r.dtype).max
        parts = [gain.clamp(max=largest).unsqueeze(-1) * part for gain, part in zip(gains, self._parts(r), strict=True)]
        return Estimate(torch.cat(parts, -1), 0.0, complete=True)

    def _parts(self, v: Tensor) -> tuple[Tensor, ...]:
        return v.split(self.leaves, -1) if self.leaves else (v,)
