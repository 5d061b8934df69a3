"""Fixed points: z* with z* = f(z*, x); deep equilibrium layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from torchimplicit.adjoints import Adjoint
from torchimplicit.capture.randomness import Randomness
from torchimplicit.compiling.entries import solves
from torchimplicit.compiling.entry import entry_point
from torchimplicit.condition import Flat, Kind
from torchimplicit.layout import same_as_z
from torchimplicit.problems.pose import Callback, pose_and_solve
from torchimplicit.solution import Solution
from torchimplicit.solvers.method import Method
from torchimplicit.status import OnFailure


class FixedPoint(Kind):
    """The condition is z − f(z), so that a plain step z − residual is f(z)."""

    name = "fixed point"
    near_identity = True

    def residual(self, f: Flat, z: Tensor) -> Tensor:
        return z - f(z)


@solves("fixed_point")
@entry_point
def fixed_point(
    f: Callable[..., Any],
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
    """Find z* = f(z*, *args), differentiable in args and in every tensor that f uses.

    Args:
        f: f(z, *args) -> like z.
        z0: the start, like z: a tensor (0-d too) or a pytree of tensors of one floating or complex dtype and one device. No
            gradient flows to it: z* does not depend on it. Half precision is solved in float32 and returned as it came.
        args: further arguments, any pytree; what is no tensor passes through.
        solver: a name ("newton", "chord", "newton_krylov", "dogleg", "pseudo_transient", "broyden", "anderson", "picard", "auto") or
            an object of :mod:`torchimplicit.solvers`. None is "auto" (:func:`torchimplicit.solvers.choose`): plain steps, and
            "anderson" from where these are slow.
        adjoint: how gradients come back: ``Implicit()`` (default, exact), ``Unrolled()``, ``OneStep()``, ``Phantom()``.
        batch_ndim: the first so many dimensions of every leaf of z index independent systems; 0: z is one unknown.
        batched: a tree of booleans like args, saying which of its tensors carry the batch dimensions.
        rtol, atol: no number of z is off by more than atol + rtol · rms(z), in each leaf, by the solver's estimate; by default √eps
            and eps of the dtype (:class:`torchimplicit.tolerance.Tolerance`).
        max_steps: step limit; by default the solver's.
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

    Converged when the estimated error of z, ``info.error``, is within the tolerance: the residual f(z) − z times 1 / (1 − θ), θ the
    contraction seen.

    Example::

        W = torch.randn(8, 8) / 8
        x = torch.randn(8, requires_grad=True)
        z, info = ti.fixed_point(lambda z: torch.tanh(W @ z + x), torch.zeros(8))
    """
    return pose_and_solve(
        FixedPoint(),
        f,
        z0,
        args,
        same_as_z,
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
