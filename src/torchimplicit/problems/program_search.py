"""How programs of all kinds are searched: at once, in float64, with the inverse that the derivative needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.layout import Layout
from torchimplicit.loop.search import Search
from torchimplicit.loop.solve import SearchResult
from torchimplicit.norms import measured
from torchimplicit.programs.solving import Solutions
from torchimplicit.solvers.equations import Equations
from torchimplicit.status import Status, unanswered
from torchimplicit.tolerance import Tolerance


@dataclass(frozen=True)
class ProgramSearch(Search):
    """What they share. ``layout`` : of z and the multipliers."""

    layout: Layout
    tolerance: Tolerance

    def told(self, found: Solutions, equations: Equations, z0: Tensor) -> SearchResult:
        """What was found, held against the tolerance of z."""
        w = found.w.to(z0.dtype)
        z = w[:, : found.correction.shape[-1]]
        residual = measured(equations.residual(w)) if w.numel() else w.sum(-1)
        bound = self.tolerance.bound(z)
        error = found.correction.abs().amax(-1).to(w.dtype)
        floor = self.tolerance.floor(w.dtype).bound(z)
        converged = found.status == Status.CONVERGED
        status = torch.where(converged & (error > bound.maximum(floor)), Status.STAGNATED, found.status)
        residual = torch.where(unanswered(status), torch.nan, residual)
        error = torch.where(unanswered(status), torch.nan, error)
        return SearchResult(w, status, found.steps, residual, error, bound, found.inverse)
