"""Linear systems: z* with A(x) z* = b(x)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchimplicit.adjoints import Adjoint, Implicit
from torchimplicit.capture.autocast import Autocast
from torchimplicit.compiling.entries import solves
from torchimplicit.compiling.entry import entry_point
from torchimplicit.compiling.traced_problem import TracedProblem
from torchimplicit.condition import Kind
from torchimplicit.graph.explicit import Explicit
from torchimplicit.layout import HALF, Layout, describe, same_as_z
from torchimplicit.linear import Auto, Dense, LinearOperator, as_operator, check_linear_solver
from torchimplicit.linear.iteration import IterativeSolver
from torchimplicit.linear.solver import LinearSolver
from torchimplicit.linear.structure import Structure
from torchimplicit.parameters import check_steps
from torchimplicit.problem import Problem
from torchimplicit.problems.linear_search import AsBefore, LinearSearch, is_made_of_tensors
from torchimplicit.problems.pose import check_adjoint
from torchimplicit.problems.reposed import NullSpace, beside_null_space
from torchimplicit.problems.reposed import shortest as reposed
from torchimplicit.solution import Record, Solution
from torchimplicit.solvers.auto import FORMED_LIMIT
from torchimplicit.status import OnFailure, check_policy
from torchimplicit.tolerance import Tolerance


class Linear(Kind):
    """The condition is A z − b; its size is judged against b: z starts at 0, where the residual is −b."""

    name = "solution of the linear system"
    linear = True

    def __init__(self, operator: Structure) -> None:
        self.symmetric, self.positive_definite = operator.symmetric, operator.positive_definite


@entry_point
def linear_solve(
    A: Tensor | LinearOperator | Callable[[Tensor], Tensor],
    b: Tensor,
    *,
    solver: LinearSolver | None = None,
    adjoint: Adjoint | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
    on_failure: OnFailure = "warn",
    shortest: bool = False,
    null_space: NullSpace | None = None,
) -> Solution:
    """Solve A z = b, differentiable in b and in the entries of A, or in whatever a callable A uses.

    Args:
        A: a tensor (..., n, n), a sparse tensor (n, n), a :class:`torchimplicit.linear.LinearOperator`, a sparse matrix or operator
            of SciPy, an operator of the package ``linear_operator`` (:class:`torchimplicit.linear.Represented`), or a callable
            z -> A z, linear in z. Batch dimensions broadcast against those of b.
        b: right-hand sides, vectors (..., n). Several for one matrix stand along leading dimensions.
        solver: of :mod:`torchimplicit.linear`. None: ``linear.Auto()``, direct for entries, iterative for a callable.
        adjoint: ``Implicit()`` by default: one more solve, with Aᴴ from the same factorisation (or by the same iterative
            solver); ``Unrolled()`` differentiates the linear solver's own steps.
        rtol, atol: ‖b − A z‖ ≤ atol + rtol ‖b‖ for each vector; by default √eps and 0.
        max_steps: step limit of an iterative solver.
        on_failure: "warn", "raise", "nan" or "ignore"; for the forward and the backward. A singular A is a failure.
        shortest: A may have any shape (..., m, n), and full rank: the z for which ‖A z − b‖ is smallest, or, where A has more
            columns than rows, the shortest solution. With ``solver=linear.SVD()``, which is dense, of any rank: z = A⁺ b.
        null_space: of a square A that is singular: a basis V (n,) or (..., n, k), A V = 0, of all its null space, where A is
            promised to be symmetric; else (V, W) with Aᴴ W = 0 too. Gives the shortest z for which ‖A z − b‖ is smallest: what b
            has outside the range of A is left out. Derivatives are those with V and W as they are.

    Returns:
        ``Solution(value, info)``: z (..., n), and facts with one entry per vector.

    Raises:
        TypeError, ValueError: A and b do not fit, or A is not square without ``shortest``; the message names the shapes.
        ConvergenceError: a system failed under ``on_failure="raise"``.

    A compiled graph has neither ``shortest`` nor ``null_space``: such a call is left out of it.
    """
    if not isinstance(b, Tensor):
        raise TypeError(f"b must be a tensor of vectors (..., n); got {describe(b)}.")
    check_linear_solver("solver", solver)
    _check(b, adjoint, max_steps, on_failure)
    if isinstance(A, Tensor) and A.layout == torch.strided:
        A = _spread(A, b)
    operator = as_operator(A, like=b)
    if operator.device != b.device:
        raise ValueError(
            f"A and b must be on one device; A is on {operator.device}, b on {b.device}. Move one with .to()."
        )
    unknowns = slice(None)
    if shortest or null_space is not None:
        regular = (
            beside_null_space(_square(operator), b, null_space) if null_space is not None else reposed(operator, b)
        )
        operator, b, unknowns = regular
        A = operator
    operator = _square(operator)
    batch_shape = torch.broadcast_shapes(operator.batch_shape, b.shape[:-1])
    fn, args = _function(A, operator)
    b_full = b.expand(*batch_shape, b.shape[-1])
    solution = _solve(
        Linear(operator.structure), fn, (*args, b), operator, b_full, solver, adjoint, rtol, atol, max_steps, on_failure
    )
    return solution if unknowns == slice(None) else solution._replace(value=solution.value[..., unknowns])


@solves("linear_solve", like_z=True)
def linear_system(
    residual: Callable[..., Tensor],
    z0: Tensor,
    args: tuple[Any, ...] = (),
    *,
    dense: bool,
    symmetric: bool,
    positive_definite: bool,
    solver: LinearSolver | None = None,
    adjoint: Adjoint | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
    on_failure: OnFailure = "warn",
) -> Solution:
    """The same as a graph has it: z, like z0, with A z − b = 0, the residual. ``dense`` : b and the entries of A are the first args."""
    _check(z0, adjoint, max_steps, on_failure)
    operator, b = None, torch.zeros_like(z0)
    solver = solver or Auto(dense_limit=FORMED_LIMIT)  # for there it has no second choice
    if isinstance(residual, Explicit) and dense:
        b, A = args[0].expand(z0.shape), args[1 if len(args) > 1 else 0]  # one tensor may be both
        operator = Dense(_spread(A, b), symmetric, positive_definite)
    structure = Structure(symmetric=symmetric, positive_definite=positive_definite).completed()
    return _solve(Linear(structure), residual, args, operator, b, solver, adjoint, rtol, atol, max_steps, on_failure)


def _square(operator: LinearOperator) -> LinearOperator:
    m, n = operator.shape[-2:]
    if m != n:
        which = "least squares solution" if m > n else "shortest solution"
        raise ValueError(
            f"A has shape {tuple(operator.shape)}: {m} equations for {n} unknowns. For the {which} pass shortest=True."
        )
    return operator


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
    solver: LinearSolver | None,
    adjoint: Adjoint | None,
    rtol: float | None,
    atol: float | None,
    max_steps: int | None,
    on_failure: OnFailure,
) -> Solution:
    """For b (..., n) with the batch dimensions of the solution; ``fn`` is A z − b. Without an operator A is its Jacobian."""
    layout = Layout.of(b, b.ndim - 1, name="b")
    tolerance = Tolerance.of(rtol, 0.0 if atol is None else atol, layout.real_dtype)
    search = LinearSearch(solver or Auto(), operator, b, tolerance, max_steps)
    if adjoint is None:
        adjoint = Implicit(linear_solver=AsBefore(solver, search) if isinstance(solver, IterativeSolver) else None)
    problem = (TracedProblem if isinstance(fn, Explicit) else Problem)(
        kind=kind,
        fn=fn,
        args=args,
        layout=layout,
        flatten=lambda layout, _: same_as_z(layout, "A"),
        search=search,
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


def _function(A: Any, operator: LinearOperator) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
    """A z − b as a function of z, of A where its tensors can be given, and of b; what else A uses is captured."""
    fn: Callable[..., Tensor]
    args: tuple[Any, ...]
    if isinstance(A, Tensor) and isinstance(operator, Dense):
        fn, args = lambda z, A, b: (A @ z.unsqueeze(-1)).squeeze(-1) - b, (operator.A,)
    elif is_made_of_tensors(operator):
        fn, args = lambda z, A, b: A.apply(z) - b, (operator,)
    else:
        fn, args = lambda z, b: operator.apply(z) - b, ()
    fn.__qualname__ = linear_solve.__name__  # as errors call it
    return fn, args
