"""Is this layer what its author believes it to be: convergent, well posed, and rightly differentiated?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchimplicit import nn
from torchimplicit.adjoints import Unrolled
from torchimplicit.diagnostics.checked_problem import FORMS, CheckedProblem, flat_real, gradient_of, random_like_z
from torchimplicit.diagnostics.differences import compare, passing_error
from torchimplicit.diagnostics.spectrum import largest_singular_value, smallest_singular_value, spectral_radius
from torchimplicit.diagnostics.verdict import Check, KindName
from torchimplicit.layout import Layout
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.parameters import check_args
from torchimplicit.status import Status

LAYERS = (nn.FixedPoint, nn.Root, nn.ArgMin)


def check(
    f: Callable[..., Any],
    z0: Any,
    args: Sequence[Any] = (),
    kind: KindName = "fixed_point",
    *,
    seed: int = 0,
    **keywords: Any,
) -> Check:
    """Solve, differentiate, and compare with what is known independently.

    f, z0, args : as for ``ti.fixed_point`` or whatever ``kind`` names; all floating tensors in ``args``, and all
        tensors that f captures and that require a gradient, are differentiated in.
    kind : "fixed_point", "root", "minimize" or "least_squares".
    seed : of the random directions of the finite differences.
    keywords : passed on to the solve: ``batch_ndim``, ``solver``, ``adjoint``, tolerances, ...

    What is checked: that the solve converges; that autograd's derivative of f is the derivative of f; for a fixed
    point, the spectral radius of ∂f/∂z (below 1, plain steps converge); the singular values of ∂g/∂z (the implicit
    function theorem needs the smallest to be above 0); the implicit gradient, against central finite differences of
    the solution in random directions and against the explicit gradient; and what each of them costs.

    Raises ValueError for an unknown kind, TypeError for args that are no tuple, and whatever f and the solve raise. f is
    evaluated many times; float64 sees much smaller errors than float32.
    """
    if kind not in FORMS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, FORMS))}; got {kind!r}.")
    check_args(args)
    if keywords.pop("has_aux", False):
        with_aux = f

        def f(z: Any, *args: Any) -> Any:
            return with_aux(z, *args)[0]

    layout = Layout.of(z0, keywords.get("batch_ndim", 0))
    generator = torch.Generator().manual_seed(seed)
    problem = CheckedProblem(f, z0, tuple(args), kind, keywords, layout)
    cotangent = random_like_z(layout.batch * layout.size, generator, layout).view(layout.batch, layout.size)

    start = time.perf_counter()
    z, info = problem.solve(z0)
    report = Check(kind, layout.batch, layout.size, info, seconds={"forward": time.perf_counter() - start})
    _judge_convergence(report, info)
    flat = layout.flatten(z).detach()
    if not bool(flat.isfinite().all() & info.residual.isfinite().all()):
        return report
    start = time.perf_counter()
    gradient = problem.gradient(z, cotangent)  # before any leaf is moved for a finite difference
    report.seconds["implicit backward"] = time.perf_counter() - start
    _judge_derivative(report, problem, flat, generator)
    _judge_well_posedness(report, problem, flat)
    if not problem.leaves:
        report.say("gradient", "note", "f has neither floating args nor captured tensors that require a gradient.")
        return report
    _judge_explicit(report, problem, cotangent, gradient)
    _judge_gradient(report, problem, flat, cotangent, gradient, generator)
    _tell_cost(report)
    return report


def layer_arguments(layer: nn.FixedPoint | nn.Root | nn.ArgMin, *inputs: Any) -> dict[str, Any]:
    """The arguments with which :func:`check` checks a layer of ``ti.nn`` at example inputs."""
    if isinstance(layer, nn.FixedPoint):
        kind, f = "fixed_point", layer.cell
    else:
        kind, f = ("root" if isinstance(layer, nn.Root) else "minimize"), layer.module
    return {"f": f, "z0": layer._start(inputs), "args": inputs, "kind": kind, **layer.options}


def _judge_convergence(report: Check, info: Any) -> None:
    failed = int((~info.converged).sum())
    worst = f"residual {info.residual.max().item():.1e}, at most {int(info.steps.max())} steps"
    if failed:
        why = " ".join(line for line in info.message.splitlines() if not line.startswith("converged"))
        report.say("convergence", "fail", f"{failed} of {report.systems} did not converge ({worst}). {why}")
    else:
        report.say("convergence", "ok", worst)


def _judge_derivative(report: Check, problem: CheckedProblem, flat: Tensor, generator: torch.Generator) -> None:
    """f's own derivative: if it is wrong, everything is."""
    z = flat.clone().requires_grad_()
    leaves = [z, *problem.leaves]
    layout = problem.layout

    def value() -> Tensor:
        return flat_real(problem.f(layout.argument(z), *problem.args))

    with torch.enable_grad():
        out = value()
    cotangent = random_like_z(out.numel(), generator, layout)
    gradient = gradient_of((out * cotangent).sum(), leaves)
    error, uncertainty = compare(lambda: value() @ cotangent, leaves, gradient, generator)
    report.derivative_error = error
    if error <= passing_error(layout.dtype) + uncertainty:
        report.say("derivative of f", "ok", f"agrees with finite differences of f to {error:.1e}")
    else:
        report.say(
            "derivative of f",
            "fail",
            f"autograd's differs from finite differences of f by {error:.1e}, relative. Likely causes: (a) a custom "
            "autograd.Function with a wrong backward; (b) .detach(), .data or .item() on the way; (c) a jump (round, "
            "argmax) near z*. Nothing built on f can have a right gradient.",
        )


def _judge_well_posedness(report: Check, problem: CheckedProblem, flat: Tensor) -> None:
    with torch.no_grad():
        if report.kind == "fixed_point":
            radius = spectral_radius(Jacobian(lambda z: z - problem.condition(z), flat))
            rho = report.spectral_radius = radius.value.max().item()
            about = f"spectral radius of df/dz {'' if radius.exact else 'at least '}{rho:.3g}"
            if rho < 1:
                report.say("contraction", "ok", f"{about}: plain steps gain a factor of {1 / max(rho, 1e-12):.3g} each")
            else:
                report.say(
                    "contraction",
                    "note",
                    f"{about}, not below 1: plain steps, and Neumann series in the backward, do not converge here. "
                    "Another solver may (anderson, newton); the implicit gradient does not need a contraction.",
                )
        A = Jacobian(problem.condition, flat)
        smallest, largest = smallest_singular_value(A), largest_singular_value(A)
    sigma = report.smallest_singular_value = smallest.value.min().item()
    condition = report.condition_number = (largest.value / smallest.value).max().item()
    about = (
        f"smallest singular value of dg/dz {'' if smallest.exact else 'about '}{sigma:.2e}, condition {condition:.2e}"
    )
    eps, adjoint = torch.finfo(flat.dtype).eps, report.info.adjoint
    if not condition < 1 / (10 * eps):
        report.say(
            "well-posedness",
            "fail",
            f"{about}: singular to working precision, so the implicit function theorem does not apply and z* has no "
            "derivative. Likely causes: (a) a multiple root or a fold; (b) fewer independent equations than unknowns.",
        )
    elif adjoint is not None and bool((adjoint.status == Status.SINGULAR).any()):
        report.say(
            "well-posedness",
            "fail",
            f"{about}, where the solve ended; yet the backward found it singular at the solution itself, as it is at a multiple "
            f"root: {Status.SINGULAR.prose_for('derivative')}",
        )
    elif condition > eps**-0.5:
        report.say("well-posedness", "note", f"{about}: nearly singular; expect to lose half of the digits.")
    else:
        report.say("well-posedness", "ok", about)


def _judge_gradient(
    report: Check,
    problem: CheckedProblem,
    flat: Tensor,
    cotangent: Tensor,
    gradient: list[Tensor],
    generator: torch.Generator,
) -> None:
    layout = problem.layout
    start = layout.unflatten(flat)  # from the solution itself, so that every solve stays on this branch
    floor = 32 * torch.finfo(flat.dtype).eps

    def value() -> Tensor:
        z, _ = problem.solve(start, rtol=floor, atol=floor)
        return (layout.flatten(z) * cotangent).sum()

    began = time.perf_counter()
    error, uncertainty = compare(value, problem.leaves, gradient, generator)
    report.seconds["finite differences"] = time.perf_counter() - began
    report.gradient_error = error
    if error <= passing_error(layout.dtype) + uncertainty:
        sure = "" if uncertainty < 0.1 else " (differences too rough to tell more; try float64)"
        report.say("implicit gradient", "ok", f"agrees with finite differences of z* to {error:.1e}{sure}")
        return
    text = f"differs from finite differences of z* by {error:.1e}, relative. "
    if (report.derivative_error or 0) > passing_error(layout.dtype):
        text += "The derivative of f is wrong already, see there"
        if (report.explicit_error or 0) < error / 10:
            text += "; the explicit gradient is wrong in the same way"
        text += "."
    elif not bool(report.info.converged.all()):
        text += "The solve did not converge: this is no gradient of a solution."
    else:
        text += "Likely causes: (a) an adjoint that is not exact (OneStep, Phantom, Neumann, GaussNewton); (b) a kink or jump near z*."
    report.say("implicit gradient", "fail", text)


def _judge_explicit(report: Check, problem: CheckedProblem, cotangent: Tensor, gradient: list[Tensor]) -> None:
    """Twice the steps of the forward solve: the derivative of the iterates settles later than the iterates do."""
    steps = max(1, 2 * int(report.info.steps.max()))
    began = time.perf_counter()
    z, _ = problem.solve(problem.z0, adjoint=Unrolled(steps))
    turned = time.perf_counter()
    unrolled = problem.gradient(z, cotangent)
    report.seconds["explicit forward"] = turned - began
    report.seconds["explicit backward"] = time.perf_counter() - turned
    difference = torch.cat([flat_real(a - b) for a, b in zip(unrolled, gradient)])
    size = torch.cat([flat_real(a) for a in gradient]).norm()
    error = report.explicit_error = (difference.norm() / size.clamp_min(torch.finfo(size.dtype).tiny)).item()
    if error <= 100 * passing_error(problem.layout.dtype):
        report.say("explicit gradient", "ok", f"through {steps} steps, it agrees with the implicit one to {error:.1e}")
    else:
        report.say(
            "explicit gradient",
            "note",
            f"through {steps} steps, it differs from the implicit one by {error:.1e}, relative; finite differences "
            "decide which is right.",
        )


def _tell_cost(report: Check) -> None:
    s, info = report.seconds, report.info
    backward = ""
    if info.adjoint is not None:
        backward = f" ({int(info.adjoint.products)} products)"
    report.say(
        "cost",
        "ok",
        f"forward {1e3 * s['forward']:.3g} ms ({int(info.steps.max())} steps, {int(info.evaluations)} evaluations), "
        f"implicit backward {1e3 * s['implicit backward']:.3g} ms{backward}; explicit, with twice the steps, "
        f"{1e3 * s['explicit forward']:.3g} and {1e3 * s['explicit backward']:.3g} ms",
    )
