"""The gradient by the inverse Jacobian that the forward solve has put together on its way."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from torchimplicit.adjoints.noted import few_steps, noted
from torchimplicit.autograd.transforms import inside_transform
from torchimplicit.capture.mode import being_captured
from torchimplicit.loop.search import Iterate
from torchimplicit.problem import Problem
from torchimplicit.solution import Solution
from torchimplicit.solvers import Anderson, Broyden
from torchimplicit.solvers.anderson import AndersonState
from torchimplicit.solvers.broyden import BroydenState


@dataclass(frozen=True)
class SHINE:
    """dℓ/dx ≈ −(Hᵀ dℓ/dz*)ᵀ ∂g/∂x with H the estimate of the inverse Jacobian that Broyden's method, or the differences of Anderson's,
    leave at z*: no linear solve, one vector-Jacobian product, as :class:`OneStep`, whose H is the identity. An approximation.

    H is good along the steps that were taken, and the identity across them, so that nothing bounds the error of the gradient; more
    steps, by a tighter tolerance, make it smaller. Where all steps were plain ones it is that of ``OneStep``. How far the adjoint
    system is left from being solved is not computed: the residual of ``info.adjoint`` is NaN.
    Source: Ramzi, Mannel, Bai, Starck, Ciuciu and Moreau, SHINE: SHaring the INverse Estimate from the forward pass for bi-level
    optimization and implicit models, ICLR 2022.

    Raises:
        TypeError: the solver is neither ``Broyden()``, started from the identity, nor ``Anderson()``.
        RuntimeError: inside a function transform or a graph, where the forward's state is not at hand.
    """

    def run(self, problem: Problem, z0: Tensor) -> Solution:
        """Solve, and attach the derivative."""
        if inside_transform() or being_captured():
            raise RuntimeError(
                "SHINE() takes what the forward solve leaves behind, which transforms and graphs do not show. Use Implicit()."
            )
        search = problem.search
        keeping = _keeping(search.solver) if isinstance(search, Iterate) else None
        if keeping is None or not isinstance(search, Iterate):
            raise TypeError(
                "SHINE() takes the inverse Jacobian that the steps of 'broyden' or 'anderson' have seen, and this solver leaves none. "
                "Name one of them as solver=, or use Implicit(), to which the factors of Newton's method serve."
            )
        # All systems stay together, so that what is kept of each has the same shape.
        problem = replace(problem, search=replace(search, solver=keeping), batched=None)
        z, facts, inverse = problem.find(z0, problem.equations(z0))
        z = z.detach()
        aux = problem.aux(z) if problem.has_aux else None
        step = problem.residual(z)
        step = step - step.detach()
        if inverse:
            u, v = inverse
            step = step + ((v @ step.unsqueeze(-1)).mT @ u).squeeze(-2)
        return problem.solution(noted(z - step, problem, few_steps(1), facts.status), facts, aux)


class _Broyden(Broyden):
    """The method, which leaves its updates: H = I + Σ u vᵀ."""

    def inverse(self, state: BroydenState) -> tuple[Tensor, ...]:
        used = torch.arange(self.memory, device=state.u.device) < state.k
        return torch.where(used.unsqueeze(-1), state.u, 0), state.v


class _Anderson(Anderson):
    """The method, which leaves the inverse of least change that its differences allow: H = I + (ΔZ − ΔR) ΔR⁺."""

    def inverse(self, state: AndersonState) -> tuple[Tensor, ...]:
        if state.dr is None or state.dp is None:
            return ()
        dr, dz = state.dr, state.dp + self.damping * state.dr
        size = torch.linalg.vector_norm(dr, dim=-1, keepdim=True)
        usable = (size > 0) & size.isfinite()
        dr, dz = (torch.where(usable, d / torch.where(usable, size, 1), 0) for d in (dr, dz))
        gram = torch.linalg.pinv(dr @ dr.mT, rtol=torch.finfo(dr.dtype).eps ** 0.5, hermitian=True)
        return dz - dr, gram @ dr


def _keeping(solver: Any) -> Broyden | Anderson | None:
    """The same method, as one that leaves its estimate; None for others."""
    if isinstance(solver, Broyden) and solver.start == "identity":
        return _Broyden(**{field.name: getattr(solver, field.name) for field in fields(Broyden)})
    if isinstance(solver, Anderson):
        return _Anderson(**{field.name: getattr(solver, field.name) for field in fields(Anderson)})
    return None
