"""The claims about implicit layers, each as a measurement. Nothing here prints or draws."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.demo import layers
from torchimplicit.demo.instruments import Measured, finite_difference, flat, measure, relative_error
from torchimplicit.demo.layers import Layer

# The forward pass is to take exactly as many steps as are asked for, whether it has converged or not.
EXACTLY: dict[str, Any] = {"rtol": 0.0, "atol": 0.0, "on_failure": "ignore"}


def backward_of(info: ti.SolveInfo) -> ti.SolveInfo:
    """The facts of the backward solve, which must have run."""
    assert info.adjoint is not None
    return info.adjoint


def residuals(layer: Layer, solver: str, steps: int) -> list[float]:
    """The worst residual (root mean square, over the samples of the batch) at every step of a solver."""
    worst: list[float] = []

    def watch(step: int, z: Any, residual: Tensor) -> None:
        worst.append(residual.max().item())

    with torch.no_grad():
        layer.solve(solver=solver, max_steps=steps, callback=watch, **EXACTLY)
    return worst


@dataclass(frozen=True)
class SideBySide:
    """Explicit and implicit differentiation of the same forward passes."""

    solver: str
    unknowns: int
    batch: int
    explicit: list[Measured]
    implicit: list[Measured]
    reference_norm: float
    reference_error: float
    """of the float64 reference gradient, against central finite differences"""
    jacobian_bytes: int
    """what ∂g/∂z alone would take, were it formed for every sample"""


def reference_gradient(layer: Layer, solver: str) -> Tensor:
    """The gradient of a float64 layer, as exact as can be had."""
    z, _ = layer.solve(
        solver=solver, rtol=1e-12, atol=1e-12, max_steps=2000, adjoint=ti.Implicit(rtol=1e-12, max_steps=2000)
    )
    return flat(torch.autograd.grad(layer.loss(z), layer.leaves))


def side_by_side(make: Callable[[torch.dtype], Layer], solver: str, steps: Sequence[int], repeats: int) -> SideBySide:
    """Measure the float32 layer over several numbers of forward steps, against the float64 one."""
    exact = make(torch.float64)
    reference = reference_gradient(exact, solver)

    def exact_loss() -> Tensor:
        with torch.no_grad():
            return exact.loss(exact.solve(solver=solver, rtol=1e-12, atol=1e-12, max_steps=2000).value)

    layer = make(torch.float32)

    def run(adjoint: Any, k: int) -> Measured:
        def loss() -> Tensor:
            return layer.loss(layer.solve(solver=solver, adjoint=adjoint, max_steps=k, **EXACTLY).value)

        return measure(k, loss, layer.leaves, reference, repeats)

    return SideBySide(
        solver=solver,
        unknowns=layer.unknowns,
        batch=layer.batch,
        explicit=[run(ti.Unrolled(k), k) for k in steps],
        implicit=[run(ti.Implicit(rtol=1e-6), k) for k in steps],
        reference_norm=reference.norm().item(),
        reference_error=finite_difference(exact_loss, exact.leaves, reference, h=1e-4),
        jacobian_bytes=4 * layer.batch * layer.unknowns**2,
    )


@dataclass(frozen=True)
class LongProduct:
    """A recurrent layer after k plain steps: what the chain rule says, step by step, and what the implicit way says."""

    steps: int
    start: float
    """norm of dℓ/dz₀: the whole product of the steps' Jacobians, times dℓ/dz"""
    explicit: float
    """norm of dℓ/dx through the steps"""
    implicit: float
    """norm of dℓ/dx from the implicit function theorem, at the root that Newton found in as many steps at most"""
    implicit_error: float
    residual: float
    """of the plain iteration: root mean square of f(z) − z"""


def long_products(gain: float, steps: Sequence[int]) -> list[LongProduct]:
    """Differentiate tanh(gain · W z + x) through k steps: a small gain makes gradients vanish, a large one explode."""

    def implicit_gradient(dtype: torch.dtype, k: int, rtol: float) -> Tensor:
        f, x, c = layers.recurrent(gain, dtype)
        x.requires_grad_()
        z, _ = ti.fixed_point(f, torch.zeros_like(x), (x,), solver="newton", max_steps=k, rtol=rtol, atol=rtol)
        return torch.autograd.grad(c @ z, x)[0]

    reference = implicit_gradient(torch.float64, 200, 1e-13)
    rows = []
    for k in steps:
        f, x, c = layers.recurrent(gain, torch.float32)
        x.requires_grad_()
        start = torch.zeros_like(x, requires_grad=True)
        z: Tensor = start
        for _ in range(k):
            z = f(z, x)
        in_start, in_x = torch.autograd.grad(c @ z, (start, x))
        implicit = implicit_gradient(torch.float32, k, 1e-5)
        rows.append(
            LongProduct(
                steps=k,
                start=in_start.double().norm().item(),
                explicit=in_x.double().norm().item(),
                implicit=implicit.norm().item(),
                implicit_error=relative_error(implicit, reference),
                residual=(f(z, x) - z).detach().square().mean().sqrt().item(),
            )
        )
    return rows


@dataclass(frozen=True)
class TwoTerms:
    """∂g/∂x + (∂g/∂z*)(∂z*/∂x) = 0, for one sample of the Newton layer, in Frobenius norms."""

    held_z: float
    """|∂g/∂x|, z* held fixed"""
    held_x: float
    """|(∂g/∂z*)(∂z*/∂x)|, x held fixed"""
    sum: float
    derivative_error: float
    """of ∂z*/∂x, relative, against central finite differences of the solution"""


def two_terms() -> TwoTerms:
    layer = layers.newton(torch.float64, batch=1)
    x, A, B = (leaf.detach() for leaf in layer.leaves)
    x = x[0]

    def solution(x: Tensor) -> Tensor:
        return ti.root(layers.coupled, torch.zeros_like(x), (x, A, B), solver="newton", rtol=1e-13, atol=1e-13).value

    z = solution(x)
    dz_dx = torch.func.jacrev(solution)(x)
    dg_dz, dg_dx = torch.func.jacrev(layers.coupled, argnums=(0, 1))(z, x, A, B)
    h = 1e-5
    differences = torch.stack([(solution(x + h * e) - solution(x - h * e)) / (2 * h) for e in torch.eye(len(x)).to(x)])
    return TwoTerms(
        held_z=dg_dx.norm().item(),
        held_x=(dg_dz @ dz_dx).norm().item(),
        sum=(dg_dx + dg_dz @ dz_dx).norm().item(),
        derivative_error=relative_error(dz_dx, differences.mT),
    )


@dataclass(frozen=True)
class FoldPoint:
    """The root of the fold system for one x, and what the package said about it."""

    x: float
    smallest_singular_value: float
    gradient: float
    """|dz₁/dx|, which grows like 1 / (2√x)"""
    status: str
    """of the backward solve"""
    said: str
    """warnings of the forward and the backward pass; empty if there was nothing to say"""


def fold(xs: Sequence[float] = (1.0, 1e-2, 1e-4, 1e-6, 0.0)) -> list[FoldPoint]:
    """Walk towards the point where two roots meet. There the theorem's condition fails, and that must be said."""
    rows = []
    for value in xs:
        x = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        # The start is good, so that only the Jacobian is to blame; at x = 0 it is the root itself.
        start = torch.tensor([value**0.5, 0.0], dtype=torch.float64)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            z, info = ti.root(layers.fold, start, (x,), solver="newton", rtol=1e-12, atol=1e-14)
            (slope,) = torch.autograd.grad(z[0], x)
        J = torch.func.jacrev(layers.fold)(z.detach(), x.detach())
        rows.append(
            FoldPoint(
                x=value,
                smallest_singular_value=torch.linalg.svdvals(J)[-1].item(),
                gradient=abs(slope.item()),
                status=ti.Status(int(backward_of(info).status)).name.lower(),
                said=" ".join(str(warning.message) for warning in caught),
            )
        )
    return rows


@dataclass(frozen=True)
class BackwardSolver:
    """One way to solve (∂g/∂z)ᵀ u = v on the trained layer; none computes an inverse."""

    name: str
    error: float
    """of the gradient, against the float64 reference"""
    iterations: float
    """mean over the batch"""
    products: int
    seconds: float


def backward_solvers(make: Callable[[torch.dtype], Layer]) -> list[BackwardSolver]:
    reference = reference_gradient(make(torch.float64), "anderson")
    layer = make(torch.float32)
    rows = []
    for name, linear_solver in (
        ("automatic", None),
        ("GMRES", ti.linear.GMRES()),
        ("BiCGStab", ti.linear.BiCGStab()),
        ("Neumann series, 10 terms", ti.linear.Neumann(10)),
        ("Neumann series, 50 terms", ti.linear.Neumann(50)),
    ):
        adjoint = ti.Implicit(linear_solver, rtol=1e-6)
        z, info = layer.solve(solver="picard", max_steps=100, adjoint=adjoint, **EXACTLY)
        value = layer.loss(z)
        began = time.perf_counter()
        gradient = flat(torch.autograd.grad(value, layer.leaves))
        seconds = time.perf_counter() - began
        rows.append(
            BackwardSolver(
                name=name,
                error=relative_error(gradient, reference),
                iterations=backward_of(info).steps.float().mean().item(),
                products=int(backward_of(info).products),
                seconds=seconds,
            )
        )
    return rows


@dataclass(frozen=True)
class Reuse:
    """What the backward pass of the Newton layer costs, with the forward pass's factors and without."""

    name: str
    forward_steps: float
    evaluations: int
    """of g, forward"""
    backward_products: int
    """products with (∂g/∂z)ᵀ"""
    backward_seconds: float
    error: float


def reuse(repeats: int) -> list[Reuse]:
    reference = reference_gradient(layers.newton(torch.float64), "newton")
    layer = layers.newton(torch.float32)
    rows = []
    for name, linear_solver in (
        ("factors of the forward pass", None),
        ("a new factorisation", ti.linear.LU()),
        ("GMRES, no factors", ti.linear.GMRES()),
    ):
        times = []
        for _ in range(repeats):
            z, info = layer.solve(rtol=1e-5, adjoint=ti.Implicit(linear_solver, rtol=1e-5))
            value = layer.loss(z)
            began = time.perf_counter()
            gradient = flat(torch.autograd.grad(value, layer.leaves))
            times.append(time.perf_counter() - began)
        rows.append(
            Reuse(
                name=name,
                forward_steps=info.steps.float().mean().item(),
                evaluations=int(info.evaluations),
                backward_products=int(backward_of(info).products),
                backward_seconds=min(times),
                error=relative_error(gradient, reference),
            )
        )
    return rows


@dataclass(frozen=True)
class RootFinder:
    """The gradient at a root of the Newton layer, by the algorithm that found the root."""

    name: str
    steps: float | None
    """mean over the batch; None where the algorithm does not say"""
    root_distance: float
    """relative, from the reference root"""
    error: float
    """of the gradient, relative to the reference"""


def root_finders() -> list[RootFinder]:
    """Float64: the algorithms reach the same root to many digits, so the gradients must agree to as many."""
    layer = layers.newton(torch.float64, batch=16)
    z, _ = layer.solve(rtol=1e-14, atol=1e-14, on_failure="ignore")
    root, reference = z.detach(), reference_gradient(layer, "newton")
    rows = []
    for name in ("newton", "chord", "broyden", "anderson", "newton_krylov"):
        z, info = layer.solve(solver=name, rtol=1e-11, atol=1e-11, max_steps=500, adjoint=ti.Implicit(rtol=1e-11))
        gradient = flat(torch.autograd.grad(layer.loss(z), layer.leaves))
        rows.append(
            RootFinder(
                name, info.steps.float().mean().item(), relative_error(z, root), relative_error(gradient, reference)
            )
        )
    z = black_box(*layer.leaves)
    gradient = flat(torch.autograd.grad(layer.loss(z), layer.leaves))
    rows.append(
        RootFinder("SciPy's hybr, as a black box", None, relative_error(z, root), relative_error(gradient, reference))
    )
    return rows


@ti.implicit(layers.coupled, batch_ndim=1)
def black_box(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """Solve each sample's system with MINPACK, in NumPy, where autograd sees nothing."""
    import scipy.optimize

    def one(sample: Tensor) -> Tensor:
        def g(z: Any) -> Any:
            return layers.coupled(torch.from_numpy(z), sample, A, B).numpy()

        return torch.from_numpy(scipy.optimize.root(g, torch.zeros_like(sample).numpy(), method="hybr", tol=1e-13).x)

    return torch.stack([one(sample) for sample in x])
