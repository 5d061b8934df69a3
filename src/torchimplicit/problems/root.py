"""Roots: z* with g(z*, x) = 0."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torchimplicit.adjoints import Adjoint
from torchimplicit.capture.randomness import Randomness
from torchimplicit.compiling.entries import solves
from torchimplicit.compiling.entry import entry_point
from torchimplicit.condition import Kind
from torchimplicit.layout import same_as_z
from torchimplicit.problems.pose import Callback, pose_and_solve
from torchimplicit.solution import Solution
from torchimplicit.solvers.method import Method
from torchimplicit.status import OnFailure


class Root(Kind):
    """The condition is g itself."""

    name = "root"


NOT_SQUARE = (
    " For another number of equations than of unknowns take ti.least_squares, which makes them as small as can be."
)
as_many_as_unknowns = partial(same_as_z, hint=NOT_SQUARE)


@solves("root")
@entry_point
def root(
    g: Callable[..., Any],
    z0: Any,
    args: tuple[Any, ...] = (),
    *,
    solver: str | Method | None = None,
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
    compile: bool = False,
) -> Solution:
    """Find z* with g(z*, *args) = 0, differentiable in args and in every tensor that g uses.

    Args:
        g: g(z, *args) -> like z.
        z0: the start, like z: a tensor (0-d too) or a pytree of tensors of one floating or complex dtype and one device. No
            gradient flows to it: z* does not depend on it. Half precision is solved in float32 and returned as it came.
        args: further arguments, any pytree; what is no tensor passes through.
        solver: a name ("newton", "chord", "newton_krylov", "dogleg", "pseudo_transient", "broyden", "anderson", "picard", "auto";
            for one unknown in each system "chandrupatla", "itp", "bisection") or an object of :mod:`torchimplicit.solvers`.
            None is "auto" (:func:`torchimplicit.solvers.choose`): Newton's method, and more robust ones for the systems that it
            does not solve; ``info.tried`` and ``info.solved_by`` tell which.
        adjoint: how gradients come back: ``Implicit()`` (default, exact), ``Unrolled()``, ``OneStep()``, ``Phantom()``.
        batch_ndim: the first so many dimensions of every leaf of z index independent systems; 0: z is one unknown.
        batched: a tree of booleans like args, saying which of its tensors carry the batch dimensions.
        rtol, atol: no number of z is off by more than atol + rtol · rms(z), in each leaf, by the solver's estimate; by default √eps
            and eps of the dtype (:class:`torchimplicit.tolerance.Tolerance`).
        max_steps: step limit; by default the solver's. With "auto" that of all its methods together.
        randomness: "error": a function that draws random numbers that matter (dropout) is reported; "frozen": it draws the same ones
            at every evaluation of this solve and its backward, and others in the next call.
        on_failure: "warn", "raise", "nan" (failed systems only) or "ignore"; for the forward and the backward.
        has_aux: the function returns (value, aux); aux, at the solution and detached, is ``info.aux``.
        trace: keep the residual of every step in ``info.trace``.
        callback: called as ``callback(step, z, residual)`` before the first and after every step.
        compile: find z* by a graph that ``torch.compile`` makes of the solve; the first call takes some ten seconds. What is
            differentiated is the function itself.

    Returns:
        ``Solution(value, info)``: z*, like z0, and a :class:`torchimplicit.SolveInfo`.

    Raises:
        TypeError, ValueError: an argument does not fit; the message says what was passed and what was expected.
        CaptureError: the function uses a tensor in a way whose gradient would be lost.
        ConvergenceError: a system failed under ``on_failure="raise"``.

    Converged when the estimated error of z, ``info.error``, is within the tolerance, whatever the unit of g and the start.

    Example::

        x = torch.tensor(2.0, requires_grad=True)
        z, info = ti.root(lambda z: z**3 + z - x, torch.tensor(1.0))
        z.backward()  # dz/dx = 1 / (3 z² + 1)
    """
    return pose_and_solve(
        Root(),
        g,
        z0,
        args,
        as_many_as_unknowns,
        solver=solver,
        adjoint=adjoint,
        batch_ndim=batch_ndim,
        batched=batched,
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
        randomness=randomness,
        on_failure=on_failure,
        has_aux=has_aux,
        trace=trace,
        callback=callback,
        compile=compile,
    )
