"""Richardson iteration: x + M⁻¹(b − A x), which refines what an approximate inverse gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchimplicit.linear.iteration import Apply, Cycle, IterativeSolver


@dataclass(frozen=True)
class Richardson(IterativeSolver):
    """One step is x <- x + M⁻¹(b − A x), kept as long as the residual falls.

    With the factors of A, or of a matrix near A, as the preconditioner M, this is iterative refinement.
    Source: Higham, Accuracy and Stability of Numerical Algorithms (2002), chapter 12.
    """

    cycles_in_graph: ClassVar[int | None] = 2  # a solution by factors, and its refinement

    def cycle(self, A: Apply, M: Apply, r: Tensor, tol: Tensor, active: Tensor, budget: int) -> Cycle:
        return Cycle(M(r), active.long(), torch.zeros_like(active), 1)
