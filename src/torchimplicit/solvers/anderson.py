"""Anderson acceleration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.solvers.loop import Equations
from torchimplicit.solvers.window import store
from torchimplicit.stopping import rms
from torchimplicit.transforms import finished


class AndersonState(NamedTuple):
    """What the method remembers.

    dz, dr : the last differences of iterates and of residuals, (B, m, n) each; None as long as no system mixes.
    k : how many of them were stored.
    mixing : the systems that mix, (B,).
    """

    dz: Tensor | None
    dr: Tensor | None
    k: int
    mixing: Tensor


@dataclass(frozen=True)
class Anderson:
    """Mixes the last ``memory`` steps so that the linear model of the residual is smallest, then takes a plain step.

    γ minimises ‖r − ΔR γ‖² + ε ‖ΔR‖² ‖γ‖²;  z ← (z − ΔZ γ) − damping · (r − ΔR γ).
    A system whose mixing problem cannot be solved (zero or non-finite differences) takes a plain step, and so does one as long
    as plain steps reduce its residual to less than ``patient`` times what it was: then there is little to gain.
    Source: Walker and Ni, Anderson acceleration for fixed-point iterations, SIAM J. Numer. Anal. 49 (2011), eq. 2.2.
    """

    memory: int = 5
    damping: float = 1.0
    regularisation: float | None = None  # ε; None: the dtype's rounding unit
    patient: float = 0.0
    max_steps: ClassVar[int] = 500
    patience: ClassVar[int] = 100

    def __post_init__(self) -> None:
        if not isinstance(self.memory, int) or self.memory < 1:
            raise ValueError(f"Anderson needs memory >= 1, an integer; got {self.memory!r}.")

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, AndersonState]:
        return equations.residual(z), AndersonState(None, None, 0, z.new_zeros(len(z), dtype=torch.bool))

    def step(
        self, equations: Equations, z: Tensor, r: Tensor, state: AndersonState
    ) -> tuple[Tensor, Tensor, AndersonState]:
        dz, dr, k, mixing = state
        z_bar, r_bar = z, r
        if dz is not None and dr is not None:
            m = min(k, dz.shape[1])
            gamma = torch.where(mixing.unsqueeze(-1), self._mix(dr[:, :m], r), 0).unsqueeze(1)
            z_bar = z - (gamma @ dz[:, :m]).squeeze(1)
            r_bar = r - (gamma @ dr[:, :m]).squeeze(1)
        z_new = z_bar - self.damping * r_bar
        r_new = equations.residual(z_new)
        mixing = mixing | ~(rms(r_new.detach()) < self.patient * rms(r.detach()))
        if dz is None and finished(~mixing):
            return z_new, r_new, state
        if dz is None or dr is None:
            window = z.new_zeros(z.shape[0], min(self.memory, z.shape[1]), z.shape[1])
            dz, dr = window, window.clone()
        return z_new, r_new, AndersonState(store(dz, k, z_new - z), store(dr, k, r_new - r), k + 1, mixing)

    def _mix(self, dr: Tensor, r: Tensor) -> Tensor:
        """γ (B, m) from the normal equations of the scaled differences; 0 where they have no finite solution."""
        eps = torch.finfo(r.dtype).eps if self.regularisation is None else self.regularisation
        size = dr.detach().square().sum(-1, keepdim=True).sqrt()
        usable = (size > 0) & size.isfinite()
        scale = torch.where(usable, 1 / torch.where(usable, size, 1), 0)
        columns = torch.where(usable, dr, 0) * scale  # of length one: their Gram matrix is well scaled
        gram = columns @ columns.mT
        identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        gamma, info = torch.linalg.solve_ex(
            gram + (eps + (~usable).to(gram.dtype)) * identity, (columns @ r.unsqueeze(-1))
        )
        gamma = gamma * scale
        good = (info == 0).reshape(-1, 1, 1) & gamma.isfinite()
        return torch.where(good, gamma, 0).squeeze(-1)
