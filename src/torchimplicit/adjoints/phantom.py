"""Phantom gradients: those of a few damped steps at z*."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from torchimplicit.adjoints.implicit import Implicit
from torchimplicit.adjoints.noted import few_steps, noted
from torchimplicit.parameters import check_count, check_positive
from torchimplicit.problem import Problem
from torchimplicit.solution import Solution


@dataclass(frozen=True)
class Phantom:
    """The gradient of ``steps`` damped plain steps z ← z − damping · g(z) from z*, through all of them. An approximation.

    It is the Neumann series of the damped step with ``steps`` terms, and tends to the exact gradient where those steps
    converge. The value is z* itself, whatever the steps do to it. ``info.adjoint`` tells how many were taken; how far they leave the
    adjoint system from being solved is not computed: the residual is NaN.
    Source: Geng et al., On training implicit models, NeurIPS 2021, eq. 9 (unrolling form).
    """

    steps: int = 5
    damping: float = 0.5

    def __post_init__(self) -> None:
        check_count("Phantom: steps", self.steps)
        check_positive("Phantom: damping", self.damping)
        if self.damping > 1:
            raise ValueError(f"Phantom needs damping <= 1; got {self.damping!r}.")

    def run(self, problem: Problem, z0: Tensor) -> Solution:
        """Solve, and take the damped steps from there with autograd on."""
        found, facts, aux = Implicit().solve_only(problem, z0)
        z = found
        for _ in range(self.steps):
            z = z - self.damping * problem.residual(z)
        z = noted(found + (z - z.detach()), problem, few_steps(self.steps), facts.status)
        return problem.solution(z, facts, aux)
