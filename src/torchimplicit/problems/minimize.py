"""Minima: z* = argmin φ(z, x), by the condition ∇φ = 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchimplicit.adjoints import Adjoint
from torchimplicit.autograd.products import Linearisation
from torchimplicit.bounds import Bounded, Output, WithLimits, within
from torchimplicit.capture.randomness import Randomness
from torchimplicit.compiling.entries import solves
from torchimplicit.compiling.entry import entry_point
from torchimplicit.condition import Flat, Kind, defined
from torchimplicit.layout import per_system_scalar
from torchimplicit.problems.pose import Callback, pose_and_solve
from torchimplicit.solution import Solution
from torchimplicit.solvers.method import Method
from torchimplicit.status import OnFailure


class Minimum(Kind):
    """The condition is the gradient of the objective; its Jacobian, the Hessian, is symmetric."""

    name = "minimum"
    symmetric = True
    minimised = True

    def residual(self, f: Flat, z: Tensor) -> Tensor:
        objective = Linearisation(f, (z,))
        return defined(objective.gradient(torch.ones_like(objective.value)), objective.value)

    def squares(self, f: Flat, z: Tensor) -> Tensor:
        raise TypeError(
            "this solver needs the residuals of a sum of squares, and minimize is given a number. Use least_squares, or "
            "another solver."
        )

    def objective(self, f: Flat, z: Tensor) -> Tensor:
        return f(z)


@solves("minimize")
@entry_point
def minimize(
    phi: Callable[..., Any],
    z0: Any,
    args: tuple[Any, ...] = (),
    *,
    bounds: Any = None,
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
    """Find z* that minimises phi(z, *args), differentiable in args and in every tensor that phi uses.

    Args:
        phi: phi(z, *args) -> a real number, or one per system: the shape of the batch dimensions.
        z0: the start, like z: a tensor (0-d too) or a pytree of tensors of one floating or complex dtype and one device. No
            gradient flows to it: z* does not depend on it. Half precision is solved in float32 and returned as it came.
        args: further arguments, any pytree; what is no tensor passes through.
        bounds: (lower, upper), each a number, a tensor that broadcasts to z, a pytree like z, or None; infinite where there is
            none. Gradients flow to them: a z that its bound holds moves with it. See :mod:`torchimplicit.bounds`.
        solver: a name ("trust_newton", "newton_cg", "bfgs", "lbfgs", "nonlinear_cg", and within bounds "projected_newton", which
            go downhill; "newton", "chord", "newton_krylov", "pseudo_transient", "broyden", "anderson", "picard", which go to any
            stationary point; "auto") or an object of :mod:`torchimplicit.solvers`. None is "auto"
            (:func:`torchimplicit.solvers.choose`).
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

    Converged when the estimated error of z, ``info.error``, is within the tolerance. Up to n = 64 the Hessian is looked at: it judges
    the error, and a saddle point or a maximum has the status SADDLE, a failure. Beyond, any stationary point counts, by the estimate
    of the method. The derivative is that of the stationary point, with the exact Hessian.

    Example::

        target = torch.randn(3, requires_grad=True)
        z, info = ti.minimize(lambda z: ((z - target) ** 2).sum() + z.exp().sum(), torch.zeros(3))
    """
    kind: Kind = Minimum()
    output: Output = per_system_scalar
    if bounds is not None and callable(phi):
        phi, z0, args, batched = within(phi, z0, args, bounds, batched, has_aux)
        kind, output = Bounded(kind), WithLimits(output)
    return pose_and_solve(
        kind,
        phi,
        z0,
        args,
        output,
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
