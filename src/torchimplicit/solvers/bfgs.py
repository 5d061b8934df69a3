"""The BFGS method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.linear.masks import divide
from torchimplicit.solvers.descent import curved, dot
from torchimplicit.solvers.line_search import LineSearch


class InverseHessian(NamedTuple):
    """The approximate inverse Hessians (B, n, n), and how often each was updated, (B,)."""

    H: Tensor
    k: Tensor


@dataclass(frozen=True)
class BFGS(LineSearch):
    """z ← z − α H ∇φ(z), H a dense inverse Hessian that every step updates: H ← (I − ρ s yᵀ) H (I − ρ y sᵀ) + ρ s sᵀ, ρ = 1 / sᵀy.

    H starts from sᵀy / yᵀy times the identity. A step without positive curvature sᵀy updates nothing.
    Source: Nocedal and Wright, Numerical Optimization (2006), algorithm 6.1, eq. 6.17 and 6.20.
    """

    def forget(self, memory: InverseHessian | None, z: Tensor, rows: Tensor) -> InverseHessian:
        eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device).expand(z.shape[0], -1, -1)
        if memory is None:
            return InverseHessian(eye, torch.zeros(z.shape[0], dtype=torch.int64, device=z.device))
        return InverseHessian(torch.where(rows[:, None, None], eye, memory.H), torch.where(rows, 0, memory.k))

    def updated(self, memory: InverseHessian, s: Tensor, y: Tensor, r: Tensor, rows: Tensor) -> InverseHessian:
        H, k = memory
        rows = rows & curved(s, y)
        sy = dot(s, y)
        scale = torch.where(rows & (k == 0), divide(sy, dot(y, y), rows), 1)
        H = scale[:, None, None] * H
        rho = divide(torch.ones_like(sy), sy, rows).unsqueeze(-1)
        Hy = (H @ y.unsqueeze(-1)).squeeze(-1)
        # The update written as H + u sᵀ + s uᵀ: symmetric, and two matrices cheaper.
        u = rho * ((1 + rho * dot(y, Hy).unsqueeze(-1)) / 2 * s - Hy)
        update = u.unsqueeze(-1) * s.unsqueeze(-2)
        return InverseHessian(torch.where(rows[:, None, None], H + update + update.mT, H), k + rows)

    def direction(self, memory: InverseHessian, r: Tensor) -> tuple[Tensor, Tensor]:
        return -(memory.H @ r.unsqueeze(-1)).squeeze(-1), (memory.k > 0).to(r.dtype)

    def correction(self, memory: InverseHessian, d: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        return d, memory.k > 0
