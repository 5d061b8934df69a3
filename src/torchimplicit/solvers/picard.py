"""Picard iteration: plain steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from torchimplicit.parameters import check_positive
from torchimplicit.solvers.equations import Equations, Estimate
from torchimplicit.solvers.method import Method


@dataclass(frozen=True)
class Picard(Method):
    """z ← z − damping · residual; for a fixed point, z ← (1 − damping) z + damping f(z).

    Converges linearly where the map is a contraction: the spectral radius of ∂f/∂z (damped) below 1.
    """

    damping: float = 1.0
    max_steps: ClassVar[int] = 1000
    patience: ClassVar[int] = 100
    in_graph: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive("Picard: damping", self.damping)

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, None]:
        return equations.residual(z), None

    def step(self, equations: Equations, z: Tensor, r: Tensor, state: None) -> tuple[Tensor, Tensor, None]:
        z = z - r if self.damping == 1 else z - self.damping * r
        return z, equations.residual(z), None

    def estimate(self, z: Tensor, r: Tensor, state: None) -> Estimate:
        """The next step; how much further those after it lead has to be seen."""
        return Estimate(r, scale=self.damping)
