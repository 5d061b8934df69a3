"""Anderson acceleration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.parameters import check_count, check_positive
from torchimplicit.solvers.equations import Equations
from torchimplicit.solvers.window import store
from torchimplicit.stopping import rms
from torchimplicit.transforms import finished


class AndersonState(NamedTuple):
    """What the method remembers.

    dr : the last differences of residuals, (B, m, n); None as long as no system mixes.
    de : those of where a plain step leads, z − damping · r.
    k : how many of them were stored.
    mixing : the systems that mix, (B,).
    """

    dr: Tensor | None
    de: Tensor | None
    k: int
    mixing: Tensor


@dataclass(frozen=True)
class Anderson:
    """Mixes the last ``memory`` steps so that the linear model of the residual is smallest, then takes a plain step.

    γ minimises ‖r − ΔR γ‖² + ε ‖ΔR‖² ‖γ‖²;  z ← (z − ΔZ γ) − damping · (r − ΔR γ).
    A system whose mixing problem cannot be solved (zero or non-finite differences) takes a plain step, and so does one as long
    as plain steps reduce its residual to less than ``plain_below`` times what it was: then there is little to gain. Where mixing has
    made the residual larger (or NaN) the plain step is evaluated too, and taken where it does better.
    Source: Walker and Ni, Anderson acceleration for fixed-point iterations, SIAM J. Numer. Anal. 49 (2011), eq. 2.2.
    """

    memory: int = 5
    damping: float = 1.0
    regularisation: float | None = None  # ε; None: the dtype's rounding unit
    plain_below: float = 0.0
    max_steps: ClassVar[int] = 500
    patience: ClassVar[int] = 100

    def __post_init__(self) -> None:
        check_count("Anderson: memory", self.memory)
        check_positive("Anderson: damping", self.damping)

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, AndersonState]:
        return equations.residual(z), AndersonState(None, None, 0, z.new_zeros(len(z), dtype=torch.bool))

    def step(
        self, equations: Equations, z: Tensor, r: Tensor, state: AndersonState
    ) -> tuple[Tensor, Tensor, AndersonState]:
        dr, de, k, mixing = state
        plain = z - self.damping * r
        z_new = plain
        if dr is not None and de is not None:
            m = min(k, dr.shape[1])
            gamma = torch.where(mixing.unsqueeze(-1), self._mix(dr[:, :m], r), 0)
            z_new = plain - (gamma.unsqueeze(1) @ de[:, :m]).squeeze(1)
        r_new = equations.residual(z_new)
        if dr is not None:
            z_new, r_new = self._safeguarded(equations, plain, r, z_new, r_new)
        mixing = mixing | ~(rms(r_new.detach()) < self.plain_below * rms(r.detach()))
        if dr is None and finished(~mixing):
            return z_new, r_new, state
        if dr is None or de is None:
            window = z.new_zeros(z.shape[0], max(1, min(self.memory, z.shape[1])), z.shape[1])
            dr, de = window, window.clone()
        change = r_new - r
        de = store(de, k, z_new - z - self.damping * change)
        return z_new, r_new, AndersonState(store(dr, k, change), de, k + 1, mixing)

    def _safeguarded(
        self, equations: Equations, plain: Tensor, r: Tensor, z_new: Tensor, r_new: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The mixed step, or the plain one of a system where mixing has made the residual larger and that does better."""
        norm = rms(r_new.detach())
        floor = torch.finfo(norm.dtype).eps ** 0.75 * rms(z_new.detach())  # below it the residual is rounding error
        suspects = ~(norm <= rms(r.detach()).maximum(floor))
        if finished(~suspects):
            return z_new, r_new
        r_plain = equations.residual(plain)
        worse = (suspects & ~(norm <= rms(r_plain.detach()))).unsqueeze(-1)
        return torch.where(worse, plain, z_new), torch.where(worse, r_plain, r_new)

    def _mix(self, dr: Tensor, r: Tensor) -> Tensor:
        """γ (B, m) from the normal equations, scaled to a unit diagonal; 0 where they have no finite solution."""
        eps = torch.finfo(r.dtype).eps if self.regularisation is None else self.regularisation
        gram = dr @ dr.mT
        square = gram.detach().diagonal(dim1=1, dim2=2)
        usable = (square > 0) & square.isfinite()
        scale = torch.where(usable, torch.where(usable, square, 1).rsqrt(), 0)
        gram = (
            torch.where(usable.unsqueeze(-1) & usable.unsqueeze(-2), gram, 0)
            * scale.unsqueeze(-1)
            * scale.unsqueeze(-2)
        )
        rhs = scale * (r.unsqueeze(1) @ dr.mT).squeeze(1)  # as dr @ r it takes ten times longer
        gamma, info = torch.linalg.solve_ex(gram + torch.diag_embed(eps + (~usable).to(gram.dtype)), rhs)
        good = (info == 0).unsqueeze(-1) & gamma.isfinite()
        return torch.where(good, scale * gamma, 0)
