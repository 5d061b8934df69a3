"""What the iterative solvers share: the geometry, and the one loop with its per-system masks.

A method contributes one *cycle*: an approximate solution d of the residual equation A d = r. The loop restarts it from
the true residual until that is small, keeps the best x seen, and decides about each system on its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import below, finished, inside_functorch, reaches, tracing
from torchimplicit.graph.loop import Operands, repeat
from torchimplicit.linear.factors import square
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.preconditioning import Preconditioning, check_preconditioner, prepare
from torchimplicit.linear.solver import Bound, LinearResult, Preconditioner
from torchimplicit.linear.vectors import fit
from torchimplicit.parameters import check_steps

Apply = Callable[[Tensor], Tensor]  # the product of a matrix with vectors


def euclidean(x: Tensor, y: Tensor) -> Tensor:
    """xᴴ y over the last dimension."""
    return torch.linalg.vecdot(x, y)


def euclidean_norm(x: Tensor) -> Tensor:
    """‖x‖ over the last dimension, without overflow or underflow, and with derivatives 0 (of any order) where x = 0."""
    if not x.shape[-1]:
        return x.abs().sum(-1)
    largest = torch.linalg.vector_norm(x.detach(), torch.inf, dim=-1, keepdim=True)
    positive = largest > 0
    unit = torch.where(positive, largest, 1)
    norm = unit * torch.linalg.vector_norm(torch.where(positive, x, 1) / unit, dim=-1, keepdim=True)
    return torch.where(positive, norm, largest).squeeze(-1)


def plain_norm(x: Tensor) -> Tensor:
    """‖x‖ over the last dimension."""
    return torch.linalg.vector_norm(x, dim=-1)


@dataclass(frozen=True)
class Geometry:
    """The inner product and norm of a space of vectors. Replace both for sharded vectors (all-reduce the sums)."""

    inner: Callable[[Tensor, Tensor], Tensor] = euclidean
    norm: Callable[[Tensor], Tensor] = euclidean_norm


EUCLIDEAN = Geometry()

CYCLE_IN_GRAPH = 10  # steps in one cycle: in a graph they are written out one after the other
PROGRESS = 0.999  # a cycle that leaves more of the residual gains nothing


class Products:
    """The products with an operator, or with its adjoint.

    count : how many there were.
    """

    def __init__(self, operator: LinearOperator, of_adjoint: bool) -> None:
        self.operator, self._of_adjoint, self.count = operator, of_adjoint, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.operator.apply(x, self._of_adjoint)

    @property
    def operands(self) -> Operands:
        """What they use, for the body of a loop in a graph."""
        return self.operator.operands

    def adjoint(self, y: Tensor) -> Tensor:
        """With the adjoint of what it multiplies with."""
        self.count += 1
        return self.operator.apply(y, not self._of_adjoint)


class Cycle(NamedTuple):
    """What a method did in one cycle. Per system means: of shape (*lead, *batch_shape).

    Attributes:
        d: the correction, (*lead, *batch_shape, n): the best one that it saw, not the last.
        steps: that each system took (int64, per system).
        broken: whether the method could not go on (bool, per system).
        length: steps of the batch, by so many the budget of the next cycle is smaller.
        cut: whether nothing but the budget ended it (bool, per system); None: of no system.
        left: the residual that d leaves, like d, where it is known without another product, as after one step; None: it is not known.
    """

    d: Tensor
    steps: Tensor
    broken: Tensor
    length: int
    cut: Tensor | None = None
    left: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class IterativeSolver(ABC):
    """Parameters that every iterative solver has.

    Attributes:
        in_graph: whether a solve by it may be part of a graph of torch.compile.
        steps_in_graph: of one cycle there, which are written out; None: these are a loop themselves.
        approaches: whether each step comes nearer to the solution in a measure of the method's own, while the residual may grow: then
            what a cycle has that its budget ended is taken, whatever its residual.
        preconditioner: an approximate inverse: anything with `solve(b, adjoint=False)`; or a solver, which is then
            factorised on the operator (one that iterates is no fixed linear map: that is for GMRES, which is flexible); or an
            operator near A that has a direct solve, such as `Diagonal(d)`; or a callable r -> M r with M about A⁻¹, for vectors
            (*batch_shape, n).
        max_steps: limit of steps, if the call gives none; None means 2 n + 20.
        geometry: inner product and norm.
    """

    cycles_in_graph: ClassVar[int | None] = None  # so few that they are written out; else a loop
    in_graph: ClassVar[bool] = False
    steps_in_graph: ClassVar[int | None] = CYCLE_IN_GRAPH
    approaches: ClassVar[bool] = False
    preconditioner: Preconditioning = None
    max_steps: int | None = None
    geometry: Geometry = field(default_factory=lambda: EUCLIDEAN, repr=False)

    def __post_init__(self) -> None:
        check_preconditioner(self.preconditioner)
        check_steps(self.max_steps)

    @property
    def norm(self) -> Callable[[Tensor], Tensor]:
        """The norm of vectors of ordinary size, without the care that tiny and huge ones and derivatives need."""
        recorded = torch.is_grad_enabled() or inside_functorch()
        return self.geometry.norm if recorded or self.geometry is not EUCLIDEAN else plain_norm

    def inner_products(self, basis: Tensor, x: Tensor) -> Tensor:
        """(..., k): those of k vectors, (..., k, n), with x."""
        if self.geometry is EUCLIDEAN:
            return (x.unsqueeze(-2) @ basis.mH).squeeze(-2)  # as basis.conj() @ x it takes up to ten times longer
        return self.geometry.inner(basis, x.unsqueeze(-2))

    def factorize(self, operator: LinearOperator) -> IterativeState:
        """The state for this operator: nothing is computed, except what the preconditioner needs.

        Raises:
            ValueError: the operator is not square.
            TypeError: the preconditioner is an operator without a direct solve, or does not fit this operator.
        """
        square(operator, type(self).__name__)
        return IterativeState(self, operator, prepare(self.preconditioner, operator))

    @abstractmethod
    def cycle(self, A: Products, M: Apply, r: Tensor, tol: Tensor, active: Tensor, budget: int) -> Cycle:
        """Approximately solve A d = r from d = 0, in at most `budget` steps.

        Args:
            A: the product; where Aᴴ x = b is solved, that one. A method that takes both products has the other as `A.adjoint`.
            M: applies the preconditioner, M r about A⁻¹r, or its adjoint. It need not be a fixed linear map.
            r: (*lead, *batch_shape, n).
            tol: per system, (*lead, *batch_shape): one may stop as soon as it believes that its residual norm is at most that.
            active: bool, per system. The others have r = 0 and must stay at d = 0.
            budget: steps.

        No system may disturb another: numbers of a system that breaks down are masked. Values are asked for by
        `finished(~going)` alone, never by a Python `bool`, which transforms and graphs refuse. The loop evaluates b − A x itself,
        unless it is told.
        """


class IterativeState(Bound):
    """A solver bound to an operator. It holds no factors: the operator and the preconditioner are all there is."""

    def __init__(
        self, solver: IterativeSolver, operator: LinearOperator, preconditioner: Preconditioner | None
    ) -> None:
        self.solver = solver
        self.operator = operator
        self.preconditioner = preconditioner

    def iterate(
        self,
        b: Tensor,
        adjoint: bool = False,
        *,
        x0: Tensor | None = None,
        rtol: float | Tensor | None = None,
        atol: float | None = None,
        max_steps: int | None = None,
    ) -> LinearResult:
        """Solve A x = b, or Aᴴ x = b, for b of shape (*lead, *batch_shape, n).

        A system has converged when ‖b − A x‖ <= atol + rtol ‖b‖ (rtol = √eps of the dtype, atol = 0). b = 0 gives
        x = 0 in 0 steps. Inside a functorch transform exactly `max_steps` masked steps are run. Autograd sees the
        steps that were taken, so a system that took none has gradient 0.

        Raises:
            TypeError, ValueError: b or x0 does not fit; the message names the shape that would.
        """
        operator = self.operator
        n, norm = operator.shape[-1], self.solver.geometry.norm
        b = fit(b, operator.batch_shape, n, operator.dtype, name="b")
        limit = max_steps if max_steps is not None else self.solver.max_steps
        limit = 2 * n + 20 if limit is None else limit
        A = Products(operator, adjoint)

        def M(x: Tensor) -> Tensor:
            return x if self.preconditioner is None else self.preconditioner.solve(x, adjoint)

        # Solve for b of norm one where squares of its numbers might vanish or overflow. The scale is no part of the
        # derivative, for the solution is proportional to b.
        scale = self._size(b)
        unscaled = ordinary(scale)
        zero = unit = None
        if not unscaled:
            scale = norm(b).detach()
            zero = scale == 0
            unit = torch.where(zero | ~scale.isfinite(), 1, scale)
            b = b / unit.unsqueeze(-1)
        tol = tolerance(scale, rtol, atol)
        tol = tol if unit is None else tol / unit
        if x0 is None:
            x, r, residual = None, b, scale if unit is None else self._size(b)
        else:
            x0 = fit(x0, operator.batch_shape, n, operator.dtype, name="x0").expand(b.shape)
            x = x0 if unit is None else x0 / unit.unsqueeze(-1)
            x = x if zero is None else torch.where(zero.unsqueeze(-1), 0, x)
            r = b - A(x)
            r = r if zero is None else torch.where(zero.unsqueeze(-1), 0, r)
            residual = self._size(r)
        steps = torch.zeros_like(residual, dtype=torch.int64)
        broken_down = torch.zeros_like(residual, dtype=torch.bool)
        active = residual > tol
        active = active if unscaled and x0 is None else active & residual.isfinite()
        if tracing():
            state = torch.zeros_like(b) if x is None else x, r, residual, steps, broken_down, active
            x, r, residual, steps, broken_down, active = self._in_graph(A, M, b, tol, state, limit)
        everyone, nobody = tracing() or finished(active), tracing() or finished(~active)
        used = 0
        while used < limit and not nobody:
            rhs = r if everyone else torch.where(active.unsqueeze(-1), r, 0)
            d, taken, broken, length, cut, left = self.solver.cycle(A, M, rhs, tol, active, limit - used)
            x_new = d if x is None else x + d
            r_new = b - A(x_new) if left is None else left
            residual_new = self._size(r_new)
            used += length
            if everyone and finished(residual_new <= tol):  # the common case
                no = torch.zeros_like(active)
                return self._result(x_new, residual_new, steps + taken, (~no, no, no), unit, A.count)
            if everyone and finished(residual_new < PROGRESS * residual):  # nothing to mask
                x, r, residual = x_new, r_new, residual_new
                steps, broken_down = steps + taken, broken
                active = residual > tol
            else:
                before = torch.zeros_like(b) if x is None else x, r, residual, steps, broken_down, active
                after = x_new, r_new, residual_new, taken, broken
                cut = None if cut is None or used < limit else cut
                x, r, residual, steps, broken_down, active = self._better(before, after, tol, cut)
            everyone, nobody = everyone and finished(active), finished(~active)
        converged = residual <= tol
        x = torch.zeros_like(b) if x is None else x
        if not finished(converged):
            usable = residual.isfinite() if zero is None else residual.isfinite() | zero
            x = torch.where(usable.unsqueeze(-1), x, torch.nan)
        how = (converged, broken_down & ~converged, active & ~converged)
        return self._result(x, residual, steps, how, unit, A.count)

    def _in_graph(
        self, A: Products, M: Apply, b: Tensor, tol: Tensor, state: tuple[Tensor, ...], limit: int
    ) -> tuple[Tensor, ...]:
        """The same loop, of masked cycles, as one operator of a graph that is being made."""
        operands = Operands((b, tol), outer=self.operator.operands)
        most = limit if self.solver.steps_in_graph is None else min(limit, self.solver.steps_in_graph)

        def going(carried: tuple[tuple[Tensor, ...], Tensor]) -> Tensor:
            return carried[0][-1].any() & (carried[1] < limit)

        def step(carried: tuple[tuple[Tensor, ...], Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
            (x, r, *_, active), used = carried
            b, tol = operands.tensors
            rhs = torch.where(active.unsqueeze(-1), r, 0)
            d, taken, broken, _, cut, _ = self.solver.cycle(A, M, rhs, tol, active, most)
            r_new = b - A(x + d)
            after = x + d, r_new, self._size(r_new), taken, broken
            used = used + taken.amax().clamp(min=1)
            cut = None if cut is None else cut & (used >= limit)
            return self._better(carried[0], after, tol, cut), used

        carried = state, state[3].new_zeros(())
        if self.solver.cycles_in_graph is None:
            return repeat(going, step, carried, operands)[0]
        for _ in range(min(limit, self.solver.cycles_in_graph)):
            carried = step(carried)
        return carried[0]

    def _better(
        self, before: tuple[Tensor, ...], after: tuple[Tensor, ...], tol: Tensor, cut: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Take what a cycle gave where it made the residual smaller, and keep what there was elsewhere.

        cut : whether it is the step limit that ended it, per system; None: of none.
        """
        x, r, residual, steps, broken_down, active = before
        x_new, r_new, residual_new, taken, broken = after
        better = active & (residual_new < residual)  # False for NaN
        steps = steps + torch.where(active, taken, 0)
        broken_down = torch.where(active, broken | ~residual_new.isfinite(), broken_down)
        # A restart from (nearly) the same residual would only repeat itself.
        going = better & (residual_new < PROGRESS * residual)
        if cut is not None:
            going = going | (active & cut & ~broken_down)
            better = better | going if self.solver.approaches else better
        x = torch.where(better.unsqueeze(-1), x_new, x)
        r = torch.where(better.unsqueeze(-1), r_new, r)
        residual = torch.where(better, residual_new, residual)
        return x, r, residual, steps, broken_down, going & (residual > tol)

    def _result(
        self,
        x: Tensor,
        residual: Tensor,
        steps: Tensor,
        how: tuple[Tensor, Tensor, Tensor],
        unit: Tensor | None,
        products: int,
    ) -> LinearResult:
        """For the right-hand sides that were divided by ``unit``; ``how`` it ended: converged, broken down, exhausted."""
        if unit is not None:
            x, residual = x * unit.unsqueeze(-1), residual * unit
        return LinearResult(x, residual, steps, *how, products)

    def _size(self, x: Tensor) -> Tensor:
        """The norm of vectors of ordinary scale, not differentiated."""
        with torch.no_grad():
            return self.solver.norm(x.detach())


def ordinary(size: Tensor) -> bool:
    """Whether squares of numbers of all these sizes, and their products, neither vanish nor overflow; where values are hidden never."""
    limits = torch.finfo(size.dtype)
    return not reaches(size, limits.tiny**0.25) and below(size, limits.max**0.25)


def tolerance(norm_b: Tensor, rtol: float | Tensor | None, atol: float | None) -> Tensor:
    """atol + rtol ‖b‖ with the defaults rtol = √eps, atol = 0."""
    rtol = torch.finfo(norm_b.dtype).eps ** 0.5 if rtol is None else rtol
    return rtol * norm_b + atol if atol else rtol * norm_b


def error_of(x: Tensor, b: Tensor, residual_norm: Tensor) -> Tensor:
    """The error of a solution x of A x = b, (..., n), in its largest entry, that is relatively as large as a residual."""
    norm = torch.linalg.vector_norm(b, dim=-1)
    return x.abs().amax(-1) * (residual_norm / torch.where(norm > 0, norm, 1)) if x.shape[-1] else residual_norm
