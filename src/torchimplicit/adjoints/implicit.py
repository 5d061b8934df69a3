"""The default: gradients from the implicit function theorem, exact to every order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchimplicit.adjoints.function import Solved, solve_system
from torchimplicit.adjoints.posed import LinearSettings
from torchimplicit.adjoints.systems import ConditionSystem, Find
from torchimplicit.autograd.products import Linearisation
from torchimplicit.autograd.transforms import inside_transform
from torchimplicit.capture.capture import Captured
from torchimplicit.capture.mode import as_one_call, being_captured
from torchimplicit.condition import Condition
from torchimplicit.linear import check_linear_solver
from torchimplicit.linear.solver import LinearSolver
from torchimplicit.loop.search import Inside
from torchimplicit.parameters import check_steps
from torchimplicit.problem import Problem, detached
from torchimplicit.solution import Solution, SolveStats
from torchimplicit.solvers.equations import Equations
from torchimplicit.tolerance import Tolerance

FINEST = 100  # in units of eps: no linear system is solved to a smaller relative residual unless asked for


@dataclass(frozen=True)
class Implicit:
    """Differentiate the condition at z*, whatever found it: one linear solve and one vector-Jacobian product; and, where z* is in
    doubt, one evaluation of g and one product beside it.

    linear_solver : a solver of :mod:`torchimplicit.linear`. None: the inverse that the forward solver left (the factors of
        Newton's last step, say, or of the Hessian at a minimum up to n = 64), refined to tolerance with true products; then
        ``linear.Auto()``. Tiny Jacobians (up to 64 entries over the batch) are factorised anew.
    rtol, atol : of that linear solve, ‖(∂g/∂z)ᵀu − v‖ ≤ atol + rtol ‖v‖. None: the forward's rtol, and 0; then a solution that misses
        the tolerance by rounding only counts as converged too (up to n = 64).
    max_steps : its step limit. None: the linear solver's own.

    ``Implicit(linear.Neumann(k))`` is the truncated Neumann series, an approximation that was asked for by name.
    """

    linear_solver: LinearSolver | None = None
    rtol: float | None = None
    atol: float | None = None
    max_steps: int | None = None

    def __post_init__(self) -> None:
        check_linear_solver("linear_solver", self.linear_solver)
        Tolerance.of(self.rtol, self.atol, torch.float64)
        check_steps(self.max_steps)

    def run(self, problem: Problem, z0: Tensor) -> Solution:
        """Solve, and attach the derivative."""
        return problem.solution(*self._solved(problem, z0, torch.is_grad_enabled()))

    def solve_only(self, problem: Problem, z0: Tensor) -> tuple[Tensor, SolveStats, Any]:
        """z* (B, n) without a derivative, the facts and aux: what the approximate adjoints start from."""
        z, facts, aux = self._solved(problem, z0, attached=False)
        return z.detach(), facts, aux

    def _solved(self, problem: Problem, z0: Tensor, attached: bool) -> tuple[Tensor, SolveStats, Any]:
        """z*, the facts and aux. In plain code z* comes first, and the function is recorded there, if z* is to be ``attached``. Inside
        a transform the Function finds z*, for only there the batch of a vmap is seen as a whole, and the function is recorded at z0.
        """
        hidden = inside_transform() or being_captured()
        solved = None if hidden else Solved(*problem.find(z0, problem.equations(z0)))
        out: Any = None
        if solved is None or attached:
            at = z0 if solved is None else solved.z
            captured, condition, out, linearised = problem.capture(at)
            if solved is None or any(tensor.requires_grad for tensor in captured.tensors):
                find = _Search(problem, captured) if solved is None else _Once(solved)
                system = self._system(problem, condition, find, None if solved is None else linearised)
                solved = Solved.of(as_one_call(_solve, system, at.detach(), *captured.tensors))
        z, facts, _ = solved
        if not problem.has_aux:
            return z, facts, None
        return z, facts, problem.aux(z) if hidden or out is None else detached(out[1])

    def _system(
        self, problem: Problem, condition: Condition, find: Find, linearised: Linearisation | None = None
    ) -> ConditionSystem:
        floor = FINEST * torch.finfo(problem.layout.real_dtype).eps
        settings = LinearSettings(
            solver=self.linear_solver,
            rtol=max(problem.tolerance.rtol, floor) if self.rtol is None else self.rtol,
            atol=0.0 if self.atol is None else self.atol,
            max_steps=self.max_steps,
            forgiving=self.rtol is None and self.atol is None,
            on_failure=problem.on_failure,
            inverse=problem.search.from_tensors,
            inverse_is_earlier=problem.search.inverse_is_earlier,
            try_plain_steps=problem.kind.near_identity or problem.search.near_identity,
            tolerance=problem.tolerance,
            memory=problem.memory,
        )
        return ConditionSystem(
            condition, find, settings, problem.layout.batch_shape, problem.record, linearised=linearised
        )


@dataclass(frozen=True)
class _Search:
    """The forward solve, by the Function."""

    problem: Problem
    captured: Captured

    def __call__(self, condition: Condition, z0: Tensor, tensors: Sequence[Tensor]) -> Solved:
        problem = self.problem
        with self.captured.searching():
            inside = Inside(tensors[: len(self.captured.args.places)], condition.vmaps)
            equations = Equations(condition.at(tensors), problem.kind, memory=problem.memory)
            solved = Solved(*problem.find(z0, equations, inside))
            self.captured.check_nothing_hidden(condition, solved.z, tensors)
        return solved


class _Once:
    """What a forward solve before the Function has found, handed over once (kept, it would close a reference cycle)."""

    def __init__(self, solved: Solved) -> None:
        self.solved: Solved | None = solved

    def __call__(self, condition: Condition, z0: Tensor, tensors: Sequence[Tensor]) -> Solved:
        solved, self.solved = self.solved, None
        assert solved is not None
        return solved


def _solve(system: ConditionSystem, z0: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    return solve_system(system, z0, tensors).flat
