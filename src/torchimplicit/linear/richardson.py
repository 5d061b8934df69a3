"""Richardson iteration: x + M (b − A x) with M about A⁻¹, which refines what an approximate inverse gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchimplicit.linear.iteration import Apply, Cycle, IterativeSolver, Products


@dataclass(frozen=True)
class Richardson(IterativeSolver):
    """One step is x <- x + M (b − A x), kept as long as the residual falls.

    With the factors of A, or of a matrix near A, as the preconditioner this is iterative refinement: M is their solve.
    Source: Higham, Accuracy and Stability of Numerical Algorithms (2002), chapter 12.
    """

    cycles_in_graph: ClassVar[int | None] = 2  # a solution by factors, and its refinement

    def cycle(self, A: Products, M: Apply, r: Tensor, tol: Tensor, active: Tensor, budget: int) -> Cycle:
        return Cycle(M(r), active.long(), torch.zeros_like(active), 1)
