"""Linear systems: z* with A(x) z* = b(x)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from torchimplicit.adjoints import Adjoint, Implicit
from torchimplicit.autograd.transforms import tracing
from torchimplicit.capture.autocast import Autocast
from torchimplicit.compiling.entries import solves
from torchimplicit.compiling.entry import entry_point
from torchimplicit.compiling.problem import TracedProblem
from torchimplicit.condition import Kind
from torchimplicit.graph.explicit import Explicit
from torchimplicit.layout import HALF, Layout, describe, same_as_z
from torchimplicit.linear import Auto, Dense, LinearOperator, as_operator
from torchimplicit.linear.factors import Factors
from torchimplicit.linear.iteration import IterativeSolver, error_of, linear_status
from torchimplicit.linear.solver import LinearSolver, bind
from torchimplicit.loop.search import Inside
from torchimplicit.loop.solve import SearchResult
from torchimplicit.loop.stopping import Stopping
from torchimplicit.parameters import check_steps
from torchimplicit.problem import Problem
from torchimplicit.problems.pose import check_adjoint
from torchimplicit.solution import Record, Solution
from torchimplicit.solvers.auto import DENSE_LIMIT
from torchimplicit.solvers.equations import Equations
from torchimplicit.status import OnFailure, Status, check_policy
from torchimplicit.tolerance import Tolerance


class Linear(Kind):
    """The condition is A z − b; its size is judged against b: z starts at 0, where the residual is −b."""

    name = "solution of the linear system"
    linear = True

    def __init__(self, symmetric: bool) -> None:
        self.symmetric = symmetric


@dataclass
class LinearSearch:
    """A linear solver applied to A itself, or, inside a transform, to the Jacobian of A z − b."""

    solver: LinearSolver
    operator: LinearOperator | None
    b: Tensor
    layout: Layout
    tolerance: Tolerance
    max_steps: int | None
    factors: Factors | None = field(default=None, init=False)

    def __call__(self, equations: Equations, z0: Tensor, stopping: Stopping, inside: Inside | None) -> SearchResult:
        if inside is not None or self.operator is None:
            jacobian = equations.jacobian(z0)
            found = self._found(jacobian, -jacobian.value, lambda z: z)[0]
        else:
            found = self.recorded(equations, z0, stopping, checkpoint=False)
        return found if self.operator is not None and self.operator.explicit else self._check_linear(equations, found)

    def _check_linear(self, equations: Equations, found: SearchResult) -> SearchResult:
        """Raise ValueError where a solution z of the linear system has A(z) ≠ b, or A(2 z) ≠ 2 b: the callable A is not linear. In a
        graph, which cannot raise, such a system has stagnated."""
        once = equations.residual(found.z)
        start = equations.residual(torch.zeros_like(found.z))
        twice = equations.residual(2 * found.z) + start
        bound = self.tolerance.atol + self.tolerance.rtol * torch.linalg.vector_norm(start, dim=-1)
        residual = torch.linalg.vector_norm(torch.stack([once, twice / 2]), dim=-1).amax(0)
        rounding = torch.finfo(residual.dtype).eps ** 0.5 * (1 + bound)
        wrong = (found.status == Status.CONVERGED) & (residual > 2 * bound + rounding)
        if tracing():
            return replace(found, status=torch.where(wrong, Status.STAGNATED, found.status))
        if bool(wrong.any()):
            raise ValueError(
                "the callable A is not linear in z: A(z) differs from b at the solution of the system that its products "
                f"define (by {float(residual[wrong].max()):.3g}). Leave constants out of A (subtract A(0) from b); for a "
                "nonlinear equation use root."
            )
        return found

    def recorded(self, equations: Equations, z0: Tensor, stopping: Stopping, checkpoint: bool) -> SearchResult:
        assert self.operator is not None
        found, products = self._found(self.operator, self.b, self.layout.flatten)
        equations.products += products
        return found

    def _found(self, operator: LinearOperator, b: Tensor, flat: Callable[[Tensor], Tensor]) -> tuple[SearchResult, int]:
        """The solution, and the number of products with the operator. Its error is Newton's correction by the factors, where there
        are some; else relatively as large as the residual."""
        state = bind(self.solver, operator)
        direct = state.direct
        self.factors = direct if isinstance(direct, Factors) else None
        result = state.iterate(b, rtol=self.tolerance.rtol, atol=self.tolerance.atol, max_steps=self.max_steps)
        status = linear_status(result)
        if self.factors is not None:
            status = torch.where(self.factors.singular, Status.SINGULAR, status)
            finite = result.residual_norm.isfinite() & self.factors.tensors[0].isfinite().all(-1).all(-1)
            status = torch.where(finite, status, Status.NONFINITE)
        products = result.products
        with torch.no_grad():
            bound = self.tolerance.atol + self.tolerance.rtol * torch.linalg.vector_norm(b, dim=-1)
            bound, error = error_of(result.x, b, bound), error_of(result.x, b, result.residual_norm)
            if direct is not None and operator.shape[-1]:
                error = direct.solve(b - operator.apply(result.x)).abs().amax(-1)
                products += 1 + (0 if operator.explicit else operator.shape[-1])
        shape = result.converged.shape
        facts = (status, result.steps, result.residual_norm, error, bound)
        status, steps, residual, error, bound = (t.expand(shape).reshape(-1) for t in facts)
        return SearchResult(flat(result.x), status, steps, residual, error, bound), products

    @property
    def inverse_is_earlier(self) -> bool:
        return False

    @property
    def near_identity(self) -> bool:
        return False

    def inverse(self, found: SearchResult) -> tuple[Tensor, ...]:
        if self.factors is None:
            return ()
        systems = self.factors.tensors[0].shape[:-2]
        return tuple(t.reshape(math.prod(systems), *t.shape[len(systems) :]) for t in self.factors.tensors)

    def from_tensors(self, tensors: Sequence[Tensor]) -> Any:
        factors = type(self.factors)(tensors)  # type: ignore[misc]  # asked only where there were factors
        return _Complex(factors) if tensors[0].is_complex() else factors


class _Complex:
    """The inverse of a complex matrix, for vectors of twice as many reals."""

    def __init__(self, factors: Factors) -> None:
        self.factors = factors

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        x = self.factors.solve(torch.view_as_complex(b.unflatten(-1, (-1, 2)).contiguous()), adjoint)
        return torch.view_as_real(x).flatten(-2)

    @property
    def suspicious(self) -> Tensor:
        return self.factors.suspicious


@entry_point
def linear_solve(
    A: Tensor | LinearOperator | Callable[[Tensor], Tensor],
    b: Tensor,
    *,
    solver: Any = None,
    adjoint: Adjoint | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
    on_failure: OnFailure = "warn",
) -> Solution:
    """Solve A z = b, differentiable in b and in the entries of A, or in whatever a callable A uses.

    Args:
        A: a tensor (..., n, n), a sparse tensor (n, n), a :class:`torchimplicit.linear.LinearOperator`, or a callable z -> A z,
            linear in z. Batch dimensions broadcast against those of b.
        b: right-hand sides, vectors (..., n). Several for one matrix stand along leading dimensions.
        solver: of :mod:`torchimplicit.linear`. None: ``linear.Auto()``, direct for entries, iterative for a callable.
        adjoint: ``Implicit()`` by default: one more solve, with Aᴴ from the same factorisation (or by the same iterative
            solver); ``Unrolled()`` differentiates the linear solver's own steps.
        rtol, atol: ‖b − A z‖ ≤ atol + rtol ‖b‖ for each vector; by default √eps and 0.
        max_steps: step limit of an iterative solver.
        on_failure: "warn", "raise", "nan" or "ignore"; for the forward and the backward. A singular A is a failure.

    Returns:
        ``Solution(value, info)``: z (..., n), and facts with one entry per vector.

    Raises:
        TypeError, ValueError: A and b do not fit; the message names the shapes.
        ConvergenceError: a system failed under ``on_failure="raise"``.
    """
    if not isinstance(b, Tensor):
        raise TypeError(f"b must be a tensor of vectors (..., n); got {describe(b)}.")
    if solver is not None and (isinstance(solver, type) or not hasattr(solver, "factorize")):
        raise TypeError(
            f"solver must be an object of torchimplicit.linear with factorize(operator), such as linear.CG(); got {solver!r}."
        )
    _check(b, adjoint, max_steps, on_failure)
    if isinstance(A, Tensor) and A.layout == torch.strided:
        A = _spread(A, b)
    operator = as_operator(A, like=b)
    if operator.device != b.device:
        raise ValueError(
            f"A and b must be on one device; A is on {operator.device}, b on {b.device}. Move one with .to()."
        )
    batch_shape = torch.broadcast_shapes(operator.batch_shape, b.shape[:-1])
    fn, args = _function(A, operator)
    b_full = b.expand(*batch_shape, b.shape[-1])
    kind = Linear(operator.symmetric)
    return _solve(kind, fn, (*args, b), operator, b_full, solver, adjoint, rtol, atol, max_steps, on_failure)


@solves("linear_solve")
def linear_system(
    residual: Callable[..., Tensor],
    z0: Tensor,
    args: tuple[Any, ...] = (),
    *,
    dense: bool,
    symmetric: bool,
    positive_definite: bool,
    solver: Any = None,
    adjoint: Adjoint | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
    on_failure: OnFailure = "warn",
) -> Solution:
    """The same as a graph has it: z, like z0, with A z − b = 0, the residual. ``dense`` : b and the entries of A are the first args."""
    _check(z0, adjoint, max_steps, on_failure)
    operator, b = None, torch.zeros_like(z0)
    solver = solver or Auto(dense_limit=DENSE_LIMIT)  # for there it has no second choice
    if isinstance(residual, Explicit) and dense:
        b, A = args[0].expand(z0.shape), args[1 if len(args) > 1 else 0]  # one tensor may be both
        operator = Dense(_spread(A, b), symmetric, positive_definite)
    kind = Linear(symmetric or positive_definite)
    return _solve(kind, residual, args, operator, b, solver, adjoint, rtol, atol, max_steps, on_failure)


def _check(b: Tensor, adjoint: Adjoint | None, max_steps: int | None, on_failure: OnFailure) -> None:
    check_policy(on_failure)
    check_steps(max_steps)
    check_adjoint(adjoint)
    if b.dtype in HALF:
        raise TypeError(
            f"half precision cannot be factorised; got a {describe(b)} as b. Solve in float32: A.float(), b.float()."
        )


def _solve(
    kind: Linear,
    fn: Callable[..., Tensor],
    args: tuple[Any, ...],
    operator: LinearOperator | None,
    b: Tensor,
    solver: Any,
    adjoint: Adjoint | None,
    rtol: float | None,
    atol: float | None,
    max_steps: int | None,
    on_failure: OnFailure,
) -> Solution:
    """For b (..., n) with the batch dimensions of the solution; ``fn`` is A z − b. Without an operator A is its Jacobian."""
    if adjoint is None:
        adjoint = Implicit(linear_solver=solver if isinstance(solver, IterativeSolver) else None)
    layout = Layout.of(b, b.ndim - 1, name="b")
    tolerance = Tolerance.of(rtol, 0.0 if atol is None else atol, layout.real_dtype)
    problem = (TracedProblem if isinstance(fn, Explicit) else Problem)(
        kind=kind,
        fn=fn,
        args=args,
        layout=layout,
        flatten=lambda layout, _: same_as_z(layout, "A"),
        search=LinearSearch(solver or Auto(), operator, b, layout, tolerance, max_steps),
        tolerance=tolerance,
        max_steps=0,
        on_failure=on_failure,
        has_aux=False,
        record=Record(Linear.name),
        autocast=Autocast.now(layout.device.type),
    )
    return adjoint.run(problem, torch.zeros(layout.batch, layout.size, dtype=layout.real_dtype, device=layout.device))


def _spread(A: Tensor, b: Tensor) -> Tensor:
    """A with its single batch dimensions as large as those of b that they meet."""
    ndim = A.ndim - 2
    met = ((1,) * ndim + b.shape[:-1])[-ndim:] if ndim > 0 else ()
    return A.expand(*(n if m == 1 else m for m, n in zip(A.shape, met)), *A.shape[-2:]) if met else A


def _function(A: Any, operator: LinearOperator) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """A z − b as a function of z, the tensors of A that can be given, and b; what else A uses is captured."""
    if isinstance(A, Tensor) and A.layout == torch.strided:
        return lambda z, A, b: (A @ z.unsqueeze(-1)).squeeze(-1) - b, (A,)
    return lambda z, b: operator.apply(z) - b, ()
