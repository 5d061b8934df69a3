"""The Jacobian-free gradient: that of one plain step at z*."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from torchimplicit.adjoints.implicit import Implicit
from torchimplicit.adjoints.noted import few_steps, noted
from torchimplicit.problem import Problem
from torchimplicit.solution import Solution


@dataclass(frozen=True)
class OneStep:
    """The gradient of the single step z* − g(z*), z* held fixed: dℓ/dx ≈ −(dℓ/dz*) ∂g/∂x. An approximation.

    It replaces ∂g/∂z by the identity, which is right to first order for a fixed point of a strong contraction, where it is
    a descent direction; its error is of the size of ∂f/∂z. The value is z* itself. ``info.adjoint`` tells that one step was taken; how
    far it leaves the adjoint system from being solved is not computed: the residual is NaN.
    Source: Fung et al., JFB: Jacobian-free backpropagation for implicit networks, AAAI 2022.
    """

    def run(self, problem: Problem, z0: Tensor) -> Solution:
        """Solve, and attach the derivative of one step."""
        z, facts, aux = Implicit().solve_only(problem, z0)
        step = problem.residual(z)
        z = noted(z - (step - step.detach()), problem, few_steps(1), facts.status)
        return problem.solution(z, facts, aux)
