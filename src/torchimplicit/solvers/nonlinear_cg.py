"""Nonlinear conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.linear.masks import divide
from torchimplicit.solvers.descent import curved, dot
from torchimplicit.solvers.line_search import LineSearch

LEAST = 0.01  # of the first gradient: one that is larger is taken for that


class LastStep(NamedTuple):
    """The last step s of each system and the change y of its gradient, (B, n); whether there is one, and the norm of the gradient
    before the first of them, (B,)."""

    s: Tensor
    y: Tensor
    known: Tensor
    first: Tensor


@dataclass(frozen=True)
class NonlinearCG(LineSearch):
    """d ← −∇φ + β d, with β = (y − 2 d yᵀy / dᵀy)ᵀ∇φ / dᵀy, not below −1 / (‖d‖ min(‖∇φ‖ of the step before, 0.01)) in units in
    which the first ∇φ has the norm one: three vectors for each system, no matrix.

    The first length tried is the one with which the last step's decrease is expected again.
    Source: Hager and Zhang, A new conjugate gradient method with guaranteed descent and an efficient line search, SIAM J. Optim.
    16 (2005), eq. 1.3 to 1.6; Nocedal and Wright, Numerical Optimization (2006), section 3.5 (the first length).
    """

    curvature: ClassVar[float] = 0.1
    max_steps: ClassVar[int] = 3000
    patience: ClassVar[int] = 500
    in_graph: ClassVar[bool] = False

    def forget(self, memory: LastStep | None, z: Tensor, rows: Tensor) -> LastStep:
        if memory is None:
            nothing = torch.zeros_like(z)
            return LastStep(nothing, nothing, torch.zeros_like(rows), torch.ones_like(rows, dtype=z.dtype))
        return memory._replace(known=memory.known & ~rows)

    def updated(self, memory: LastStep, s: Tensor, y: Tensor, r: Tensor, rows: Tensor) -> LastStep:
        moved = rows.unsqueeze(-1)
        known = torch.where(rows, curved(s, y), memory.known)
        before = torch.linalg.vector_norm((r - y).detach(), dim=-1)
        first = torch.where(rows & ~memory.known, before, memory.first)
        return LastStep(torch.where(moved, s, memory.s), torch.where(moved, y, memory.y), known, first)

    def direction(self, memory: LastStep, r: Tensor) -> tuple[Tensor, Tensor]:
        s, y, known, first = memory
        sy, slope = dot(s, y), dot(s, r - y)
        # β d does not depend on the length of d: the step s takes its place.
        beta = divide(dot(y, r) - 2 * divide(dot(y, y), sy, known) * dot(s, r), sy, known)
        before = torch.linalg.vector_norm((r - y).detach(), dim=-1).minimum(LEAST * first)
        lowest = -divide(first.square(), before * torch.linalg.vector_norm(s.detach(), dim=-1), known)
        d = -r + beta.maximum(lowest).unsqueeze(-1) * s
        step = divide(slope, dot(d, r), known)
        return d, torch.where(known, step.detach(), 0)
