"""From the call to a problem: everything that the entry points share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torchimplicit import adjoints
from torchimplicit.adjoints import Adjoint, Implicit
from torchimplicit.autograd.transforms import tracing
from torchimplicit.capture.autocast import Autocast, full_precision
from torchimplicit.capture.half_precision import half_precision_of, may_be_half
from torchimplicit.capture.mode import paused
from torchimplicit.capture.parametrised import cache_may_lack_graphs
from torchimplicit.capture.randomness import Randomness, frozen
from torchimplicit.capture.sharding import refuse_sharded_tensors
from torchimplicit.compiling.traced_problem import TracedProblem
from torchimplicit.condition import Kind
from torchimplicit.graph.explicit import Explicit
from torchimplicit.hints import hint
from torchimplicit.layout import HALF, Layout, describe
from torchimplicit.linear.memory import Memory
from torchimplicit.loop.search import search_by
from torchimplicit.loop.solve import Watch
from torchimplicit.parameters import check_args, check_steps
from torchimplicit.private import pytree
from torchimplicit.problem import Problem
from torchimplicit.solution import Record, Solution
from torchimplicit.solvers import Polyalgorithm, resolve
from torchimplicit.solvers.auto import FORMED_LIMIT
from torchimplicit.solvers.method import Method
from torchimplicit.status import OnFailure, check_policy
from torchimplicit.tolerance import Tolerance

EXACT = Implicit()

Callback = Callable[[int, Any, Tensor], None]


def pose_and_solve(
    kind: Kind,
    fn: Callable[..., Any],
    z0: Any,
    args: tuple[Any, ...],
    output: Callable[[Layout, str], Callable[[Any], Tensor]],
    *,
    solver: str | Method | Polyalgorithm | None = None,
    adjoint: Adjoint | None = None,
    batch_ndim: int = 0,
    batched: Any = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
    randomness: Randomness = "error",
    on_failure: OnFailure = "warn",
    has_aux: bool = False,
    trace: bool = False,
    callback: Callback | None = None,
    compile: bool | Solution = False,
    sparsity: Any = None,
) -> Solution:
    """Check what was passed, choose the solver, and hand the problem to its adjoint.

    compile : the solution that a compiled graph has found (:func:`torchimplicit.compiling.compiled_search.compiled_search`), or False.
        Raises TypeError for True: an entry point makes the one of the other.
    """
    if not callable(fn):
        raise TypeError(f"{kind.name}: the first argument must be a function of (z, *args); got {type(fn).__name__}.")
    check_args(args)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function of (step, z, residual), or None; got {describe(callback)}.")
    check_policy(on_failure)
    check_steps(max_steps)
    check_adjoint(adjoint)
    check_compiled(kind, compile)
    if adjoint is None:
        adjoint = EXACT
    refuse_sharded_tensors(fn, z0, args)
    layout = Layout.of(z0, batch_ndim)
    memory = memory_for(sparsity, kind, layout)
    sparse = memory is not None and sparsity is not None
    method = resolve(solver, kind, layout, sparse).fitted(layout)
    args = tuple(args)
    rows = check_batched(batched, args, layout)
    fn = frozen(fn, randomness, layout.device)
    with torch.no_grad():
        start = layout.flatten(z0)
        if layout.dtype in HALF:
            layout = _precision_of(layout, fn, start, args)
    problem = (TracedProblem if isinstance(fn, Explicit) else Problem)(
        kind=kind,
        fn=fn,
        args=args,
        layout=layout,
        flatten=output,
        search=search_by(method, trace, None if callback is None else _watch(callback, layout)),
        tolerance=Tolerance.of(rtol, atol, layout.tolerance_dtype).of_leaves(layout.widths, kind.multipliers),
        max_steps=method.max_steps if max_steps is None else max_steps,
        on_failure=on_failure,
        has_aux=has_aux,
        record=Record(kind.name),
        autocast=Autocast.now(layout.device.type),
        batched=rows,
        known=compile if isinstance(compile, Solution) else None,
        memory=memory,
    )
    if rtol is None:
        problem = _as_precise_as_the_function(problem, start)
    if tracing():
        return adjoint.run(problem, start)
    try:
        return adjoint.run(problem, start)
    except (TypeError, RuntimeError) as error:
        hint(error, layout, "f(z, *args)")
        raise


def memory_for(sparsity: Any, kind: Kind, layout: Layout) -> Memory | None:
    """What is known of the Jacobians at the start: what the user says; by default, beyond the size of dense ones, that a pattern may be
    looked for. None: they are products only.

    Raises TypeError, ValueError where ``sparsity`` is none of what it may be, or does not fit z.
    """
    if isinstance(sparsity, Memory):
        sparsity.check(layout.size)
        return sparsity
    if sparsity is None:
        return Memory() if layout.size > FORMED_LIMIT and not kind.near_identity else None
    if isinstance(sparsity, str) and sparsity == "off":
        return None
    memory = Memory(sparsity)
    memory.check(layout.size)
    return memory


def check_adjoint(adjoint: Adjoint | None) -> None:
    """Raise TypeError unless ``adjoint`` is None or an adjoint."""
    if adjoint is not None and (isinstance(adjoint, type) or not hasattr(adjoint, "run")):
        known = ", ".join(f"{name}()" for name in adjoints.__all__ if name != "Adjoint")
        raise TypeError(f"adjoint must be an object, one of {known}; got {adjoint!r}.")


def check_compiled(kind: Kind, compile: Any) -> None:
    """Raise TypeError where ``compile`` is true, and no solution: then nobody has compiled anything."""
    if compile and not isinstance(compile, Solution):
        raise TypeError(
            f"{kind.name}: compile={compile!r} has no effect here. It is True or False, for a function that is decorated with "
            "torchimplicit.compiling.entry.entry_point, which finds the solution by a compiled graph."
        )


def check_batched(batched: Any, args: tuple[Any, ...], layout: Layout) -> tuple[bool, ...] | None:
    """Which leaves of args carry the batch dimension, if there is one and the user has told.

    Raises unless ``batched`` is None or a tree of booleans like args, True for tensors whose first dimensions are z's.
    """
    if batched is None:
        return None
    if not layout.batch_shape:
        raise ValueError("batched= says which args carry the batch dimensions, but batch_ndim is 0: there are none.")
    leaves, tree = pytree.tree_flatten(tuple(batched) if isinstance(batched, list) else batched)
    values, structure = pytree.tree_flatten(args)
    if tree != structure or not all(isinstance(leaf, bool) for leaf in leaves):
        raise ValueError(
            f"batched must be a tree of booleans with the structure of args; got {batched!r} for {len(args)} args."
        )
    for leaf, value in zip(leaves, values, strict=True):
        ndim = len(layout.batch_shape)
        if leaf and not (isinstance(value, Tensor) and value.shape[:ndim] == layout.batch_shape):
            raise ValueError(
                f"batched says that an argument carries the batch dimensions {tuple(layout.batch_shape)}, but it is a "
                f"{describe(value)}."
            )
    return tuple(leaves) if len(layout.batch_shape) == 1 else None


def _precision_of(layout: Layout, fn: Callable[..., Any], start: Tensor, args: tuple[Any, ...]) -> Layout:
    """Half-precision unknowns are solved in float32, if the function takes them; one with half-precision weights does not."""
    with paused():
        try:
            fn(layout.argument(start), *args)
        except RuntimeError:
            return layout.in_own_precision()
    return layout


def _as_precise_as_the_function(problem: Problem, start: Tensor) -> Problem:
    """With the default rtol of half precision where the function computes in that, whatever z's dtype is: no z is nearer to the
    solution than such a function can tell.
    """
    if not (problem.autocast.enabled or may_be_half(problem.fn, problem.args)):
        return problem
    with torch.set_grad_enabled(cache_may_lack_graphs()), paused(), full_precision(problem.layout.device.type):
        half = half_precision_of(problem.function, start.detach())
    if half is None:
        return problem
    rtol = Tolerance.of(None, None, half).rtol
    return replace(problem, tolerance=replace(problem.tolerance, rtol=max(rtol, problem.tolerance.rtol)))


def _watch(callback: Callback, layout: Layout) -> Watch:
    def watch(step: int, z: Tensor, residual: Tensor) -> None:
        z, residual = z.detach().clone(), residual.detach().clone()  # the user may change them
        if len(residual) == layout.batch:
            callback(step, layout.unflatten(z), residual.reshape(layout.batch_shape))
        else:
            callback(step, z, residual)

    return watch
