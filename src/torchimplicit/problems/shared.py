"""What the entry points share: the arguments that mean the same everywhere, told in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

TEXTS = {
    "{start}": """\
z0: the start, like z: a tensor (0-d too) or a pytree of tensors of one floating or complex dtype and one device. No
            gradient flows to it: z* does not depend on it. Half precision is solved in float32 and returned as it came.
        args: further arguments, any pytree; what is no tensor passes through.""",
    "{bounds}": """\
bounds: (lower, upper), each a number, a tensor that broadcasts to z, a pytree like z, or None; infinite where there is
            none. Gradients flow to them: a z that its bound holds moves with it. See :mod:`torchimplicit.bounds`.""",
    "{constraints}": """\
constraints: a :class:`torchimplicit.Constraints`: functions of (z, *args) that are 0, or at most 0, at the solution. Their
            multipliers are ``info.dual``, differentiable too. See :mod:`torchimplicit.constraints`.""",
    "{adjoint}": """\
adjoint: how gradients come back: ``Implicit()`` (default, exact), ``Unrolled()``, ``OneStep()``, ``Phantom()``,
            ``SHINE()``.""",
    "{options}": """\
batch_ndim: the first so many dimensions of every leaf of z index independent systems; 0: all of z is one system.
        batched: a tree of booleans like args, saying which of its tensors carry the batch dimensions.
        rtol, atol: no number of z is off by more than atol + rtol · rms(z), in each leaf, by the solver's estimate; by default √eps
            and eps of the dtype (:class:`torchimplicit.tolerance.Tolerance`).
        max_steps: step limit; by default the solver's, of several in turn that of all together.
        randomness: "error": a function that draws random numbers that matter (dropout) is reported; "frozen": it draws the same ones
            at every evaluation of this solve and its backward, and others in the next call.
        on_failure: "warn", "raise", "nan" (failed systems only, and the gradients that are asked of them) or "ignore"; for the forward
            and the backward.
        has_aux: the function returns (value, aux); aux, at the solution and detached, is ``info.aux``.
        trace: keep the residual of every step in ``info.trace``.
        callback: called as ``callback(step, z, residual)`` before the first and after every step.
        sparsity: where ∂g/∂z (of a minimum the Hessian) has entries, in one system: a sparse tensor of torch, a sparse array of SciPy,
            a list of the lengths of diagonal blocks, or "detect", from the function itself. Newton steps and the backward then take
            factors of one sparse matrix (:class:`torchimplicit.linear.Large`). A :class:`torchimplicit.linear.Memory` keeps them from
            call to call. Under constraints: "detect", "off" or a Memory. None: the pattern is looked for beyond n = 256, but not of a
            fixed point; "off": never. Needs SciPy, ``torchimplicit[scipy]``, and tensors on the CPU.
        compile: find z* by a graph that ``torch.compile`` makes of the solve; the first call takes 20 seconds
            to some minutes. What is differentiated is the function itself.

    Returns:
        ``Solution(value, info)``: z*, like z0, and a :class:`torchimplicit.SolveInfo`.

    Raises:
        TypeError, ValueError: an argument does not fit; the message says what was passed and what was expected.
        CaptureError: the function uses a tensor in a way whose gradient would be lost.
        ConvergenceError: a system failed under ``on_failure="raise"``.""",
}

OPTIONS = (
    *("solver", "adjoint", "batch_ndim", "batched", "rtol", "atol", "max_steps"),
    *("randomness", "on_failure", "has_aux", "trace", "callback", "compile", "sparsity"),
)


def documented(fn: F) -> F:
    """Decorator: the docstring with these texts in the places that name them."""
    for place, text in TEXTS.items():
        fn.__doc__ = None if fn.__doc__ is None else fn.__doc__.replace(place, text)
    return fn


def options_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of what an entry point was given, its ``locals()``, that go on to :func:`~torchimplicit.problems.pose.pose_and_solve`."""
    return {name: given[name] for name in OPTIONS}
