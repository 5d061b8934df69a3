"""Broyden's method with limited memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.parameters import check_count
from torchimplicit.solvers.equations import Equations
from torchimplicit.solvers.window import store


class BroydenState(NamedTuple):
    """The inverse Jacobian I + Σ u vᵀ, as windows u, v (B, m, n), and how many updates they hold."""

    u: Tensor
    v: Tensor
    k: int


@dataclass(frozen=True)
class Broyden:
    """Broyden's first ("good") method: z ← z − H g(z), H a rank-one update of the inverse Jacobian at every step.

    H starts as the identity, the inverse Jacobian of a fixed point z − f(z) where f is nearly constant, and starts again
    after ``memory`` updates. A system whose update would divide by (nearly) zero skips it.
    Source: Broyden, A class of methods for solving nonlinear simultaneous equations, Math. Comp. 19 (1965);
    Kelley (1995), section 7.3.
    """

    memory: int = 30
    max_steps: ClassVar[int] = 300
    patience: ClassVar[int] = 60

    def __post_init__(self) -> None:
        check_count("Broyden: memory", self.memory)

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, BroydenState]:
        window = z.new_zeros(z.shape[0], self.memory, z.shape[1])
        return equations.residual(z), BroydenState(window, window.clone(), 0)

    def step(
        self, equations: Equations, z: Tensor, r: Tensor, state: BroydenState
    ) -> tuple[Tensor, Tensor, BroydenState]:
        u, v, k = state
        s = -_apply(u[:, :k], v[:, :k], r)
        z_new = z + s
        r_new = equations.residual(z_new)
        if k == self.memory:
            u, v, k = torch.zeros_like(u), torch.zeros_like(v), 0
        y = r_new - r
        Hy = _apply(u[:, :k], v[:, :k], y)
        Hs = _apply(v[:, :k], u[:, :k], s)  # Hᵀ s
        divisor = (Hs * y).sum(-1, keepdim=True)
        eps = torch.finfo(z.dtype).eps
        size = (Hs.square().sum(-1, keepdim=True) * y.square().sum(-1, keepdim=True)).sqrt()
        usable = (divisor.abs() > eps * size) & size.isfinite()
        update = torch.where(usable, (s - Hy) / torch.where(usable, divisor, 1), 0)
        return z_new, r_new, BroydenState(store(u, k, update), store(v, k, torch.where(usable, Hs, 0)), k + 1)


def _apply(u: Tensor, v: Tensor, x: Tensor) -> Tensor:
    """(I + Σ u vᵀ) x for windows u, v (B, m, n) and x (B, n)."""
    return x + ((v @ x.unsqueeze(-1)).mT @ u).squeeze(1)
