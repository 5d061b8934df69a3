"""Newton's method with every step one kernel: the function, its Jacobian, the factorisation, the step and the test of convergence.

For ``compile=True``. A kernel knows the common case only: every system takes full steps until it has converged. Whatever else
happens is left to the loop, which then starts anew: it knows of failures, of steps that are too long, of limits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchimplicit.compiled import CompiledEquations
from torchimplicit.graphs import FlatGraph
from torchimplicit.linear.jacobian import SWEEP_ENTRIES, Jacobian
from torchimplicit.linear.small_lu import factor_and_solve, worthwhile
from torchimplicit.solvers.course import PROGRESS, Stopping
from torchimplicit.solvers.descent import dot
from torchimplicit.solvers.equations import Equations, Solver
from torchimplicit.solvers.loop import Found
from torchimplicit.solvers.newton import PLAIN_LU, Newton
from torchimplicit.solvers.trust_newton import TrustNewton
from torchimplicit.solvers.trust_region import judge_all
from torchimplicit.status import Status
from torchimplicit.stopping import rms

TOGETHER = 4  # steps in one kernel, of systems so small that the call of a kernel costs more than some idle steps
SINGULAR = 0.75  # pivots that differ by more than 1/eps to this power may be those of a singular matrix
TINY = 2**8  # entries of all Jacobians of the batch up to which they are


def solve_fused(solver: Solver, equations: Equations, z: Tensor, stopping: Stopping) -> Found | None:
    """Where full steps of ``solver`` lead from z, (B, n), if they lead every system to its solution; otherwise None.

    The inverse is that of the Jacobian at the solution itself.
    """
    batch, n = z.shape
    if not isinstance(equations, CompiledEquations) or not 0 < batch * n * n <= SWEEP_ENTRIES:
        return None
    method = _method(solver, equations)
    if method is None:
        return None
    graph = equations.graph
    z = z.clone(memory_format=torch.contiguous_format)
    norm, error = z.new_empty(batch), z.new_empty(batch)
    steps = torch.zeros_like(norm, dtype=torch.int32)
    state = (z, norm, error, steps, *method.memory(z))

    together = TOGETHER if batch * n * n <= TINY else 1

    def step(*all: Tensor) -> tuple[Tensor, ...]:
        """The signal and the factors; the next state is written over the last one, for memory is slow to come by."""
        new, tensors = all[: len(state)], all[len(state) :]
        refused = new[1].new_zeros(())
        for _ in range(together):
            new, (signal, *factors) = method.step(graph, (*new, *tensors))
            refused = refused + signal[1]
        for old, value in zip(all, new, strict=False):
            if value is not old:
                old.copy_(value)
        return (torch.stack([signal[0], refused, signal[2]]), *factors)

    kernel = graph.kernel((type(method), solver, graph.tolerance), step, state)
    if kernel is None:
        return None
    tensors = [tensor.detach() for tensor in graph.tensors]
    lowest, stuck = math.inf, 0
    limit = min(stopping.max_steps, solver.max_steps)
    for before in range(0, limit + 1, together):
        signal, *factors = kernel(*state, *tensors)
        equations.evaluations += together
        equations.products += together * n
        left, refused, worst = signal.tolist()
        if not left and not refused:
            if before + together - 1 > limit and int(steps.max()) > limit:
                break
            equations.solved_as = replace(
                graph, key=(graph.key, solver)
            )  # whose factors the backward's kernel is given
            status = torch.full((batch,), Status.CONVERGED, device=z.device)
            bound = graph.tolerance.largest(torch.zeros_like(z), z)[1]
            return Found(z, status, steps.to(torch.int64), norm, error, bound, tuple(factors))
        stuck = 0 if worst < PROGRESS * lowest else stuck + 1
        lowest = min(worst, lowest)
        if refused or stuck > solver.patience or not math.isfinite(worst):
            break
    return None


def _method(solver: Solver, equations: Equations) -> _Roots | _Minima | None:
    kind = equations.kind
    if kind.near_identity or kind.bounded:
        return None
    if isinstance(solver, Newton) and solver.every == 1 and solver.line_search is None and not kind.minimised:
        return _Roots(solver)
    return _Minima() if isinstance(solver, TrustNewton) and kind.minimised and not kind.sums_squares else None


def _signal(left: Tensor, refused: Tensor, norm: Tensor) -> Tensor:
    """How many systems are left, how many refuse the step, and the largest residual."""
    return torch.stack([left.sum().to(norm.dtype), refused.sum().to(norm.dtype), norm.max()])


@dataclass(frozen=True)
class _Roots:
    solver: Newton

    def memory(self, z: Tensor) -> tuple[Tensor, ...]:
        """Nothing more."""
        return ()

    def step(self, graph: FlatGraph, all: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The next state; the signal and the factors at z."""
        z, _, _, steps, *tensors = all
        jacobian = Equations(graph.at(tensors), graph.kind).jacobian(z)
        norm = rms(jacobian.value)
        factors: tuple[Tensor, ...]
        if z.shape[-1] == 1:
            step, factors = jacobian.value / jacobian.rmatvec(torch.ones_like(z)), ()
        else:
            step, factors = self._solved(jacobian)
        error, bound = graph.tolerance.largest(step, z, rms)
        left = ~((error <= bound) & (error < torch.inf)) & ~(jacobian.value == 0).all(-1)
        z = torch.where(left.unsqueeze(-1), z - self.solver.damping * step, z)
        refused = torch.zeros_like(left)
        if factors:  # of a Jacobian that may be singular the loop knows better steps
            pivots = factors[0].diagonal(dim1=-2, dim2=-1).abs()
            refused = left & ~(pivots.amin(-1) > torch.finfo(z.dtype).eps ** SINGULAR * pivots.amax(-1))
        return (z, norm, error, steps + left), (_signal(left, refused, norm), *factors)

    def _solved(self, jacobian: Jacobian) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The step J⁻¹ r and the factors of J."""
        if self.solver.linear_solver == PLAIN_LU and worthwhile(jacobian.value):
            LU = jacobian.to_dense()
            pivots, step = factor_and_solve(LU, jacobian.value)
            return step, (LU, pivots)
        factorised = self.solver.linear_solver.factorize(jacobian)
        return factorised.solve(jacobian.value), factorised.tensors


@dataclass(frozen=True)
class _Minima:
    def memory(self, z: Tensor) -> tuple[Tensor, ...]:
        """The objective before the last step, its gradient, the step, and the decrease that it promised (NaN for no step)."""
        value, predicted = z.new_full((2, len(z)), torch.nan)
        return value, torch.zeros_like(z), torch.zeros_like(z), predicted

    def step(self, graph: FlatGraph, all: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The next state; the signal and the Cholesky factor of the Hessian at z."""
        z, _, _, steps, value_old, r_old, s_old, predicted, *tensors = all
        value, hessian = Equations(graph.at(tensors), graph.kind).objective_and_jacobian(z)
        r, H = hessian.value, hessian.to_dense()
        accepted, _ = judge_all((value_old, value), (r_old, r), s_old, predicted, torch.full_like(value, torch.inf))
        norm = rms(r)
        L, info = torch.linalg.cholesky_ex(H)
        s = -torch.cholesky_solve(r.unsqueeze(-1), L).squeeze(-1)
        error, bound = graph.tolerance.largest(s, z, rms)
        left = ~((error <= bound) & (error < torch.inf))
        refused = ~(accepted | predicted.isnan()) | (info != 0) | (left & ~s.isfinite().all(-1))
        predicted = torch.where(left, -dot(r, s) - dot(s, (H @ s.unsqueeze(-1)).squeeze(-1)) / 2, torch.nan)
        z = torch.where(left.unsqueeze(-1), z + s, z)
        return (z, norm, error, steps + left, value, r, s, predicted), (_signal(left, refused, norm), L)
