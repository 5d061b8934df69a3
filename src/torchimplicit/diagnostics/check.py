"""Is this layer what its author believes it to be: convergent, well posed, and rightly differentiated?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit import nn
from torchimplicit.adjoints import Unrolled
from torchimplicit.capture import capture
from torchimplicit.diagnostics.spectrum import largest_singular_value, smallest_singular_value, spectral_radius
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.problems.fixed_point import fixed_point
from torchimplicit.problems.least_squares import least_squares
from torchimplicit.problems.minimize import minimize
from torchimplicit.problems.pose import check_args
from torchimplicit.problems.root import root
from torchimplicit.solution import Solution
from torchimplicit.state import Layout

Kind = Literal["root", "fixed_point", "minimize", "least_squares"]
SOLVES: dict[Kind, Callable[..., Solution]] = {
    "root": root,
    "fixed_point": fixed_point,
    "minimize": minimize,
    "least_squares": least_squares,
}
LAYERS = (nn.FixedPoint, nn.Root, nn.ArgMin)
DIRECTIONS = 3


@dataclass(frozen=True)
class Verdict:
    """One thing that was looked at. ``level``: "ok"; "note", worth knowing; "fail", wrong."""

    name: str
    level: Literal["ok", "note", "fail"]
    text: str


@dataclass
class Check:
    """What :func:`check` found. ``print`` it, or look at the numbers; ``ok`` is False if anything failed.

    info : facts of the forward solve; ``info.adjoint``, of the backward one.
    spectral_radius : of ∂f/∂z at z*, the largest of the batch (fixed points only).
    smallest_singular_value, condition_number : of ∂g/∂z at z*, the worst of the batch.
    derivative_error : autograd's derivative of the function itself, against finite differences.
    gradient_error : the implicit gradient against finite differences of the solution.
    explicit_error : the explicit gradient against the implicit one.
    seconds : time of each part.
    """

    kind: Kind
    systems: int
    unknowns: int
    info: Any = field(repr=False)
    verdicts: list[Verdict] = field(default_factory=list)
    spectral_radius: float | None = None
    smallest_singular_value: float | None = None
    condition_number: float | None = None
    derivative_error: float | None = None
    gradient_error: float | None = None
    explicit_error: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Nothing failed. Notes do not count."""
        return all(verdict.level != "fail" for verdict in self.verdicts)

    def __str__(self) -> str:
        many = (
            f"{self.systems} systems of {self.unknowns} unknowns" if self.systems > 1 else f"{self.unknowns} unknowns"
        )
        head = f"{self.kind}, {many}: {'all well' if self.ok else 'NOT well'}"
        return "\n".join([head, *(f"  {v.level:>4}  {v.name}: {v.text}" for v in self.verdicts)])

    def say(self, name: str, level: Literal["ok", "note", "fail"], text: str) -> None:
        """Add a verdict."""
        self.verdicts.append(Verdict(name, level, text))


def check(
    f: Callable[..., Any],
    z0: Any,
    args: Sequence[Any] = (),
    kind: Kind = "fixed_point",
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
    if kind not in SOLVES:
        raise ValueError(f"kind must be one of {', '.join(map(repr, SOLVES))}; got {kind!r}.")
    check_args(args)
    if keywords.pop("has_aux", False):
        with_aux = f

        def f(z: Any, *args: Any) -> Any:
            return with_aux(z, *args)[0]

    layout = Layout.of(z0, keywords.get("batch_ndim", 0))
    generator = torch.Generator().manual_seed(seed)
    problem = _Problem(f, z0, tuple(args), kind, keywords, layout)
    cotangent = _random(layout.batch * layout.size, generator, layout).view(layout.batch, layout.size)

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


class _Problem:
    """The user's problem with its tensors in reach: own copies of args, and the captured leaves themselves."""

    def __init__(
        self,
        f: Callable[..., Any],
        z0: Any,
        args: tuple[Any, ...],
        kind: Kind,
        keywords: dict[str, Any],
        layout: Layout,
    ) -> None:
        self.f, self.z0, self.kind, self.keywords, self.layout = f, z0, kind, keywords, layout
        self.args = pytree.tree_map(lambda leaf: _own(leaf), args)
        given = [leaf for leaf in pytree.tree_leaves(self.args) if isinstance(leaf, Tensor) and leaf.requires_grad]
        captured, _ = capture(f, layout.argument(layout.flatten(z0)), self.args, _flat_real)
        seen = {id(leaf) for leaf in pytree.tree_leaves(self.args)}
        self.leaves = given + [t for t in captured.tensors if t.requires_grad and t.is_leaf and id(t) not in seen]

    def solve(self, start: Any, **keywords: Any) -> Any:
        return SOLVES[self.kind](self.f, start, self.args, **{**self.keywords, "on_failure": "ignore", **keywords})

    def gradient(self, z: Any, cotangent: Tensor) -> list[Tensor]:
        """Of <cotangent, z>, in all leaves."""
        return _gradient((self.layout.flatten(z) * cotangent).sum(), self.leaves)

    def condition(self, flat: Tensor) -> Tensor:
        """g at a flat z, (B, n) -> (B, n)."""
        if self.kind in ("root", "fixed_point"):
            out = self.layout.flatten(self.f(self.layout.argument(flat), *self.args))
            return flat - out if self.kind == "fixed_point" else out

        def objective(flat: Tensor) -> Tensor:
            out = self.f(self.layout.argument(flat), *self.args)
            return out.sum() if self.kind == "minimize" else _flat_real(out).square().sum() / 2

        return torch.func.grad(objective)(flat)


def _judge_convergence(report: Check, info: Any) -> None:
    failed = int((~info.converged).sum())
    worst = f"residual {info.residual.max().item():.1e}, at most {int(info.steps.max())} steps"
    if failed:
        why = " ".join(line for line in info.message.splitlines() if not line.startswith("converged"))
        report.say("convergence", "fail", f"{failed} of {report.systems} did not converge ({worst}). {why}")
    else:
        report.say("convergence", "ok", worst)


def _judge_derivative(report: Check, problem: _Problem, flat: Tensor, generator: torch.Generator) -> None:
    """f's own derivative: if it is wrong, everything is."""
    z = flat.clone().requires_grad_()
    leaves = [z, *problem.leaves]
    layout = problem.layout

    def value() -> Tensor:
        return _flat_real(problem.f(layout.argument(z), *problem.args))

    with torch.enable_grad():
        out = value()
    cotangent = _random(out.numel(), generator, layout)
    gradient = _gradient((out * cotangent).sum(), leaves)
    error, uncertainty = _compare(lambda: value() @ cotangent, leaves, gradient, generator)
    report.derivative_error = error
    if error <= _limit(layout) + uncertainty:
        report.say("derivative of f", "ok", f"agrees with finite differences of f to {error:.1e}")
    else:
        report.say(
            "derivative of f",
            "fail",
            f"autograd's differs from finite differences of f by {error:.1e}, relative. Likely causes: (a) a custom "
            "autograd.Function with a wrong backward; (b) .detach(), .data or .item() on the way; (c) a jump (round, "
            "argmax) near z*. Nothing built on f can have a right gradient.",
        )


def _judge_well_posedness(report: Check, problem: _Problem, flat: Tensor) -> None:
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
    eps = torch.finfo(flat.dtype).eps
    if not condition < 1 / (10 * eps):
        report.say(
            "well-posedness",
            "fail",
            f"{about}: singular to working precision, so the implicit function theorem does not apply and z* has no "
            "derivative. Likely causes: (a) a multiple root or a fold; (b) fewer independent equations than unknowns.",
        )
    elif condition > eps**-0.5:
        report.say("well-posedness", "note", f"{about}: nearly singular; expect to lose half of the digits.")
    else:
        report.say("well-posedness", "ok", about)


def _judge_gradient(
    report: Check,
    problem: _Problem,
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
    error, uncertainty = _compare(value, problem.leaves, gradient, generator)
    report.seconds["finite differences"] = time.perf_counter() - began
    report.gradient_error = error
    if error <= _limit(layout) + uncertainty:
        sure = "" if uncertainty < 0.1 else " (differences too rough to tell more; try float64)"
        report.say("implicit gradient", "ok", f"agrees with finite differences of z* to {error:.1e}{sure}")
        return
    text = f"differs from finite differences of z* by {error:.1e}, relative. "
    if (report.derivative_error or 0) > _limit(layout):
        text += "The derivative of f is wrong already, see there"
        if (report.explicit_error or 0) < error / 10:
            text += "; the explicit gradient is wrong in the same way"
        text += "."
    elif not bool(report.info.converged.all()):
        text += "The solve did not converge: this is no gradient of a solution."
    else:
        text += (
            "Likely causes: (a) an adjoint that is not exact (OneStep, Phantom, Neumann); (b) a kink or jump near z*."
        )
    report.say("implicit gradient", "fail", text)


def _judge_explicit(report: Check, problem: _Problem, cotangent: Tensor, gradient: list[Tensor]) -> None:
    """Twice the steps of the forward solve: the derivative of the iterates settles later than the iterates do."""
    steps = max(1, 2 * int(report.info.steps.max()))
    began = time.perf_counter()
    z, _ = problem.solve(problem.z0, adjoint=Unrolled(steps))
    turned = time.perf_counter()
    unrolled = problem.gradient(z, cotangent)
    report.seconds["explicit forward"] = turned - began
    report.seconds["explicit backward"] = time.perf_counter() - turned
    difference = torch.cat([_flat_real(a - b) for a, b in zip(unrolled, gradient)])
    size = torch.cat([_flat_real(a) for a in gradient]).norm()
    error = report.explicit_error = (difference.norm() / size.clamp_min(torch.finfo(size.dtype).tiny)).item()
    if error <= 100 * _limit(problem.layout):
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


def _limit(layout: Layout) -> float:
    """The relative error that passes: differences know about half of the digits."""
    return 30 * torch.finfo(layout.dtype.to_real()).eps ** 0.5


def _compare(
    value: Callable[[], Tensor], leaves: list[Tensor], gradient: list[Tensor], generator: torch.Generator
) -> tuple[float, float]:
    """Relative error of the gradient of ``value()`` in a few random directions, and the uncertainty of the differences.

    Central differences with steps h and h/2; their extrapolation is the truth, and what separates them its uncertainty.
    """
    h = torch.finfo(leaves[0].dtype).eps ** 0.25
    slopes, uncertainties, claims = [], [], []
    for _ in range(DIRECTIONS):
        direction = [_like(leaf, generator) for leaf in leaves]
        coarse, fine = (_central(value, leaves, direction, step) for step in (h, h / 2))
        slopes.append((4 * fine - coarse) / 3)
        uncertainties.append(abs(fine - coarse))
        claims.append(sum(torch.vdot(g.flatten(), d.flatten()).real.item() for g, d in zip(gradient, direction)))
    truth, claim = torch.tensor(slopes, dtype=torch.float64), torch.tensor(claims, dtype=torch.float64)
    size = max(truth.norm().item(), claim.norm().item())
    if size == 0:
        return 0.0, 0.0
    return (claim - truth).norm().item() / size, torch.tensor(uncertainties).norm().item() / size


def _central(value: Callable[[], Tensor], leaves: list[Tensor], direction: list[Tensor], h: float) -> float:
    with torch.no_grad():
        with _moved(leaves, direction, h):
            above = value().item()
        with _moved(leaves, direction, -h):
            below = value().item()
    return (above - below) / (2 * h)


@contextmanager
def _moved(leaves: list[Tensor], direction: list[Tensor], h: float) -> Iterator[None]:
    """Leaves moved in place, and put back to the bit."""
    kept = [leaf.detach().clone() for leaf in leaves]
    try:
        with torch.no_grad():
            for leaf, d in zip(leaves, direction):
                leaf.add_(d, alpha=h)
        yield
    finally:
        with torch.no_grad():
            for leaf, old in zip(leaves, kept):
                leaf.copy_(old)


def _like(leaf: Tensor, generator: torch.Generator) -> Tensor:
    """A random direction of the leaf's own size, so that every leaf is moved by the same fraction."""
    scale = leaf.detach().abs().square().mean().sqrt() if leaf.numel() else torch.zeros(())
    random = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype).to(leaf.device)
    return random * (scale + torch.finfo(leaf.dtype).eps ** 0.25)


def _random(count: int, generator: torch.Generator, layout: Layout) -> Tensor:
    return torch.randn(count, generator=generator, dtype=layout.real_dtype).to(layout.device)


def _gradient(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    if not leaves or not loss.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found)]


def _flat_real(tree: Any) -> Tensor:
    """All numbers of a pytree of tensors, complex ones as pairs."""
    leaves = pytree.tree_leaves(tree)
    return torch.cat([(torch.view_as_real(t.resolve_conj()) if t.is_complex() else t).flatten() for t in leaves])


def _own(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
        return leaf.detach().clone().requires_grad_()
    return leaf
