"""Nonlinear conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.linear.masks import divide
from torchimplicit.solvers.descent import curved, dot
from torchimplicit.solvers.line_search import LineSearch

LONGEST = 100  # times the gradient: a multiple of the last step that is turned round


class LastStep(NamedTuple):
    """The last step s of each system and the change y of its gradient, (B, n); whether there is one, (B,)."""

    s: Tensor
    y: Tensor
    known: Tensor


@dataclass(frozen=True)
class NonlinearCG(LineSearch):
    """d ← −∇φ + β d, with β = (y − 2 d yᵀy / dᵀy)ᵀ∇φ / dᵀy, β d not longer backwards than a hundred times ∇φ of the step before: three
    vectors for each system, no matrix, and no unit of φ plays a part.

    The first length tried is the one with which the last step's decrease is expected again.
    Source: Hager and Zhang, A new conjugate gradient method with guaranteed descent and an efficient line search, SIAM J. Optim.
    16 (2005), eq. 1.3 to 1.6; Nocedal and Wright, Numerical Optimization (2006), section 3.5 (the first length).
    """

    curvature: ClassVar[float] = 0.1
    max_steps: ClassVar[int] = 3000
    patience: ClassVar[int] = 500

    def forget(self, memory: LastStep | None, z: Tensor, rows: Tensor) -> LastStep:
        if memory is None:
            return LastStep(torch.zeros_like(z), torch.zeros_like(z), torch.zeros_like(rows))
        return memory._replace(known=memory.known & ~rows)

    def remember(self, memory: LastStep, s: Tensor, y: Tensor, r: Tensor, rows: Tensor) -> LastStep:
        moved = rows.unsqueeze(-1)
        known = torch.where(rows, curved(s, y), memory.known)
        return LastStep(torch.where(moved, s, memory.s), torch.where(moved, y, memory.y), known)

    def direction(self, memory: LastStep, r: Tensor) -> tuple[Tensor, Tensor]:
        s, y, known = memory
        sy, slope = dot(s, y), dot(s, r - y)
        # β d does not depend on the length of d: the step s takes its place.
        beta = divide(dot(y, r) - 2 * divide(dot(y, y), sy, known) * dot(s, r), sy, known)
        lowest = -LONGEST * torch.linalg.vector_norm((r - y).detach(), dim=-1)
        lowest = divide(lowest, torch.linalg.vector_norm(s.detach(), dim=-1), known)
        d = -r + beta.maximum(lowest).unsqueeze(-1) * s
        step = divide(slope, dot(d, r), known)
        return d, torch.where(known, step.detach(), 0)
