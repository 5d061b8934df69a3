"""The explicit way: differentiate every step of the solver."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from torchimplicit.autograd.transforms import inside_functorch
from torchimplicit.capture.autocast import full_precision
from torchimplicit.loop.settings import LoopSettings
from torchimplicit.parameters import check_count
from torchimplicit.problem import Problem
from torchimplicit.solution import Solution
from torchimplicit.solvers.equations import Equations


@dataclass(frozen=True)
class Unrolled:
    """Backpropagate through the steps: memory grows with their number, and the gradient is that of the last iterate.

    A system whose residual is exactly 0 at the start has the derivative of a step from there; with "newton_krylov" and
    "newton_cg", whose inner iterations have nothing to do then, that is 0.

    steps : exactly so many steps, whatever the residual. None: until convergence, at most ``max_steps`` of the call. Inside a
        ``torch.func`` transform, where no value may decide what runs, ``max_steps`` steps are run then, with those systems
        masked that have converged: early settings is for plain code only.
    checkpoint : keep only each step's z and state, and recompute the rest in the backward. Refused inside ``torch.func``
        transforms: a step is recomputed after they have ended.
    """

    steps: int | None = None
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if self.steps is not None:
            check_count("Unrolled: steps", self.steps)

    def run(self, problem: Problem, z0: Tensor) -> Solution:
        """Solve with every step recorded.

        Raises:
            RuntimeError: ``checkpoint=True`` inside a ``torch.func`` transform.
        """
        if self.checkpoint and inside_functorch():
            raise RuntimeError(
                "Unrolled(checkpoint=True) does not work inside torch.func transforms (grad, vjp, jacrev, jvp, vmap, ...): it "
                "recomputes its steps in the backward, when the transform has ended. Use checkpoint=False there, or Implicit(), "
                "which keeps no steps; or differentiate with autograd, in plain code."
            )
        equations = Equations(problem.function, problem.kind)
        problem.watch(equations)
        settings = LoopSettings(problem.tolerance, problem.max_steps, exactly=self.steps, at_least_one=True)
        with full_precision(problem.layout.device.type):
            found = problem.search.recorded(equations, z0.detach(), settings, self.checkpoint)
        facts = problem.noted(found, equations)
        return problem.solution(found.z, facts, problem.aux(found.z) if problem.has_aux else None)
