"""The BFGS method with limited memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.linear.masks import divide
from torchimplicit.linear.window import newest_first, store_rows
from torchimplicit.parameters import check_count
from torchimplicit.solvers.descent import curved, dot
from torchimplicit.solvers.line_search import LineSearch


class Pairs(NamedTuple):
    """The last steps s and changes of the gradient y, windows (B, m, n), and how many each system has stored, (B,)."""

    s: Tensor
    y: Tensor
    k: Tensor


@dataclass(frozen=True)
class LBFGS(LineSearch):
    """z ← z − α H ∇φ(z), H the BFGS inverse Hessian of the last ``memory`` steps, by the two-loop recursion.

    H starts from sᵀy / yᵀy times the identity. A pair without positive curvature sᵀy is not stored.
    Source: Nocedal and Wright, Numerical Optimization (2006), algorithms 7.4 and 7.5, eq. 7.20.
    """

    memory: int = 10

    def __post_init__(self) -> None:
        check_count("LBFGS: memory", self.memory)

    def forget(self, memory: Pairs | None, z: Tensor, rows: Tensor) -> Pairs:
        if memory is None:
            window = z.new_zeros(z.shape[0], self.memory, z.shape[1])
            return Pairs(window, window.clone(), torch.zeros(z.shape[0], dtype=torch.int64, device=z.device))
        return memory._replace(k=torch.where(rows, 0, memory.k))

    def updated(self, memory: Pairs, s: Tensor, y: Tensor, r: Tensor, rows: Tensor) -> Pairs:
        rows = rows & curved(s, y)
        return Pairs(store_rows(memory.s, memory.k, s, rows), store_rows(memory.y, memory.k, y, rows), memory.k + rows)

    def direction(self, memory: Pairs, r: Tensor) -> tuple[Tensor, Tensor]:
        k = memory.k
        s, y = newest_first(memory.s, k), newest_first(memory.y, k)
        stored = torch.arange(self.memory, device=k.device) < k.unsqueeze(-1)
        sy = dot(s, y)
        rho = divide(torch.ones_like(sy), sy, stored)
        scale = torch.where(stored[:, 0], divide(sy[:, 0], dot(y[:, 0], y[:, 0]), stored[:, 0]), 1)
        q, alphas = r, []
        for i in range(self.memory):
            alphas.append((rho[:, i] * dot(s[:, i], q)).unsqueeze(-1))
            q = q - alphas[i] * y[:, i]
        q = scale.unsqueeze(-1) * q
        for i in reversed(range(self.memory)):
            q = q + s[:, i] * (alphas[i] - (rho[:, i] * dot(y[:, i], q)).unsqueeze(-1))
        return -q, (k > 0).to(r.dtype)

    def correction(self, memory: Pairs, d: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        return d, memory.k > 0
