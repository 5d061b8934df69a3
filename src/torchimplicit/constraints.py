"""Constraints on the unknowns of a minimum or a fit: c(z, x) = 0 and h(z, x) ≤ 0, beside bounds.

The unknowns are w = (z, ν, μ), with a multiplier for each constraint, and L = φ + νᵀc + μᵀh. The optimality conditions of Karush, Kuhn
and Tucker are a complementarity problem in w: with F = (∇_z L, c, −h), z within its bounds, ν free and μ ≥ 0, each number of F is zero,
or presses its own of w against a bound. So the derivative, of z and of the multipliers, of every order, is that of
:mod:`torchimplicit.bounds`: rows of ∇L and of the constraints that hold with equality, and μᵢ = 0 for the others.

Where a constraint holds without force, h = 0 and μ = 0, the derivative is one-sided, and a backward says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchimplicit.autograd.products import Linearisation
from torchimplicit.bounds import GENERIC, Limited, Output, limits, projected_gradient, within
from torchimplicit.capture.names import name as name_of
from torchimplicit.condition import Flat, Kind, defined
from torchimplicit.hints import hint
from torchimplicit.layout import Layout, describe, per_system_vector
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.private import pytree

FORMED = 256  # unknowns and multipliers for which Jacobians are formed
STEPS = 8  # random ones, which tell the size of a row to within a factor: less than a third of it one time in 20,000


@dataclass(frozen=True)
class Constraints:
    """Constraints on the unknowns z of :func:`torchimplicit.minimize` and :func:`torchimplicit.least_squares`.

    equal : equal(z, *args) = 0.
    at_most : at_most(z, *args) ≤ 0.

    Each returns a tensor or a pytree of tensors whose first dimensions are the batch dimensions of z, of its dtype. Gradients flow to
    args and to every tensor that they use.

    Raises TypeError where neither is given, or one is no function.
    """

    equal: Callable[..., Any] | None = None
    at_most: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if self.equal is None and self.at_most is None:
            raise TypeError(
                "Constraints: give equal=, a function that is 0, or at_most=, one that is no larger than 0."
            )
        for name, function in (("equal", self.equal), ("at_most", self.at_most)):
            if function is not None and not callable(function):
                raise TypeError(f"Constraints: {name} must be a function of (z, *args); got {describe(function)}.")


class Constrained(Limited):
    """A minimum under constraints. The user's function is seen as (B, m + p + q + 2N): its own m numbers, c, h, and the bounds of w."""

    constrained = True

    def __init__(self, free: Kind, p: int, q: int, leaves: int) -> None:
        self.free, self.p, self.q, self.multipliers = free, p, q, leaves
        self.name = f"{free.name} under constraints"

    def unknowns(self, w: Tensor) -> int:
        return w.shape[-1] - self.p - self.q

    def parts(self, f: Flat, w: Tensor) -> tuple[Tensor, Tensor]:
        """φ (B,), and the constraints (B, p + q)."""
        own = self.own(f(w), w.shape[-1])
        m = own.shape[-1] - self.p - self.q
        value = own[:, :m] if self.free.sums_squares else own[:, 0]
        return self.free.objective(lambda _: value, w), own[:, m:]

    def objective(self, f: Flat, w: Tensor) -> Tensor:
        return self.parts(f, w)[0]

    def objective_and_constraints(self, f: Flat, w: Tensor) -> tuple[Tensor, Tensor]:
        return self.parts(f, w)

    def gradient(self, f: Flat, w: Tensor) -> Tensor:
        """F, from the gradient of L in w, which is (∇_z L, c, h)."""
        n = self.unknowns(w)

        def lagrangian(w: Tensor) -> Tensor:
            value, constraints = self.parts(f, w)
            return value + (w[:, n:] * constraints).sum(-1)

        of = Linearisation(lagrangian, (w,))
        slope = defined(of.gradient(torch.ones_like(of.value)), of.value)
        return torch.cat([slope[:, : n + self.p], -slope[:, n + self.p :]], -1)

    def slope(self, f: Flat, w: Tensor) -> Tensor:
        """∇_z L alone, (B, n): by symmetry it tells which unknowns each constraint has, however many."""
        n = self.unknowns(w)
        z, multipliers = w[:, :n], w[:, n:]

        def lagrangian(z: Tensor) -> Tensor:
            value, constraints = self.parts(f, torch.cat([z, multipliers], -1))
            return value + (multipliers * constraints).sum(-1)

        of = Linearisation(lagrangian, (z,))
        return of.gradient(torch.ones_like(of.value))

    def touches(self, slope: Jacobian, z: Tensor, lower: Tensor, upper: Tensor, error: Tensor) -> Tensor:
        """The same; and inequalities that hold to within what an error of z makes of them, with a force no larger than what it makes of
        ∇L: only z has an error of its own. How much that is the rows of ∂F/∂z say: of a step along a constraint it sees nothing."""
        n, w = self.unknowns(z), z
        change = changes(slope, torch.cat([error[:, :n], torch.zeros_like(error[:, n:])], -1))
        of_gradient, of_constraints = change[:, :n].amax(-1, keepdim=True), change[:, n:]
        forces = w[:, n:].abs() * of_constraints / error[:, :n].amax(-1, keepdim=True)  # about μ‖∇h‖
        force = of_gradient.maximum(8 * torch.finfo(w.dtype).eps * forces.sum(-1, keepdim=True))
        F, within_error = slope.value.abs(), ((w - lower).abs() <= error) | ((upper - w).abs() <= error)
        of_z = (within_error & (F <= GENERIC * change))[:, :n]
        of_h = (F[:, n:] <= GENERIC * of_constraints) & (forces <= GENERIC * force) & (lower[:, n:] == 0)
        return torch.cat([of_z, of_h], -1) & (lower < upper)

    def residual(self, f: Flat, w: Tensor) -> Tensor:
        return projected_gradient(*self.slope_and_limits(f, w))


def changes(slope: Jacobian, error: Tensor) -> Tensor:
    """‖row ∘ error‖ of each row of ∂F/∂w, (B, N): by the rows, or of large ones about, by products with random steps."""
    if slope.shape[-1] <= FORMED:
        return torch.linalg.vector_norm(slope.to_dense() * error.unsqueeze(-2), dim=-1)
    rng = torch.Generator().manual_seed(0)
    steps = torch.randn(STEPS, *error.shape, generator=rng, dtype=error.dtype).to(error.device) * error
    return slope.sweep(steps, False).square().mean(0).sqrt()


def constrained(
    free: Kind,
    fn: Callable[..., Any],
    z0: Any,
    args: Any,
    constraints: Any,
    bounds: Any,
    batched: Any,
    has_aux: bool,
    batch_ndim: int,
) -> tuple[Constrained, Callable[..., Any], Any, Any, Any]:
    """The kind, function, start, args and ``batched`` of the problem in w."""
    if not isinstance(constraints, Constraints):
        raise TypeError(f"constraints must be a ti.Constraints(equal=..., at_most=...); got {describe(constraints)}.")
    layout = Layout.of(z0, batch_ndim)
    equal, at_most = constraints.equal, constraints.at_most
    with torch.no_grad():
        shapes = [_at_start(name, c, z0, args, layout) for name, c in (("equal", equal), ("at_most", at_most))]
        sizes = [
            per_system_vector(layout, name)(c).shape[-1] if c != () else 0
            for name, c in zip(("equal", "at_most"), shapes, strict=True)
        ]
        if not sum(sizes):
            raise ValueError("constraints: neither equal nor at_most returned a number. Leave constraints= out.")
        nu, mu = (
            pytree.tree_map(lambda t: torch.zeros(t.shape, dtype=layout.dtype, device=layout.device), c) for c in shapes
        )
    leaves, tree = pytree.tree_flatten(z0)
    low, high, _ = limits((None, None) if bounds is None else bounds, leaves, tree)
    infinite = [pytree.tree_map(lambda t: torch.full_like(t, torch.inf), c) for c in (nu, mu)]
    lower = (pytree.tree_unflatten(low, tree), pytree.tree_map(torch.neg, infinite[0]), mu)
    upper = (pytree.tree_unflatten(high, tree), *infinite)

    def whole(w: Any, *args: Any) -> Any:
        z = w[0]
        value = fn(z, *args)
        held = tuple(() if c is None else c(z, *args) for c in (equal, at_most))
        if has_aux and isinstance(value, tuple) and len(value) == 2:
            return (value[0], *held), value[1]
        return value if has_aux else (value, *held)

    whole.__qualname__ = name_of(fn)
    p, q = sizes
    kind = Constrained(free, p, q, sum(len(pytree.tree_leaves(c)) for c in (nu, mu)))
    return kind, *within(whole, (z0, nu, mu), args, (lower, upper), batched, has_aux)


def _at_start(name: str, c: Callable[..., Any] | None, z0: Any, args: Any, layout: Layout) -> Any:
    """What a constraint returns there; () of none."""
    try:
        return () if c is None else c(z0, *args)
    except (TypeError, RuntimeError) as error:
        hint(error, layout, f"{name}(z, *args)")
        raise


@dataclass(frozen=True)
class WithConstraints:
    """What flattens the user's output, made to flatten it together with the constraints: (B, m + p + q)."""

    output: Output

    def __call__(self, layout: Layout, name: str) -> Callable[[Any], Tensor]:
        own = self.output(layout, name)
        vectors = [per_system_vector(layout, f"{name}'s constraints ({c})") for c in ("equal", "at_most")]

        def flatten(out: Any) -> Tensor:
            value, *constraints = out
            flat = own(value)
            flat = flat if flat.ndim == 2 else flat.unsqueeze(-1)  # an objective
            parts = [
                vector(c)
                for vector, c in zip(vectors, constraints, strict=True)
                if not (isinstance(c, tuple) and c == ())
            ]
            return torch.cat([flat, *parts], dim=1)

        return flatten
