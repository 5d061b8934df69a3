"""Bounds on the unknowns of a minimum or a fit, l ≤ z ≤ u: ∂φ/∂zᵢ = 0 between them, ≥ 0 at a lower and ≤ 0 at an upper one.

The same for any F(z) in the place of ∇φ is a complementarity problem.

A bound holds zᵢ where zᵢ lies at it (or beyond) and ∂φ/∂zᵢ presses it there. The condition is zᵢ − lᵢ = 0 for what is held by its lower
bound, likewise at the upper one, and ∂φ/∂zᵢ = 0 for what is free. So who is held depends on no unit: that of φ does not change the sign
of a slope. Methods for equations need something continuous, z − P(z − ∇φ(z)), where P is the projection; but that compares slopes with
distances, and with a large unit of φ the rounding error of a slope seems to hold a zᵢ in the middle of its bounds. So they seek its
root, and the derivative is that of the condition; what they leave next to its bound is put there in the end.

Row i of the condition's Jacobian is that of the Hessian where zᵢ is free, and of the identity where it is held: then dzᵢ/dlᵢ = 1, and
nothing else moves zᵢ. At a bound with ∂φ/∂zᵢ = 0 the solution has two one-sided derivatives; the one given is that of a free zᵢ, and
a backward says so (``Status.DEGENERATE``).
Where lᵢ = uᵢ they move zᵢ together, dzᵢ/dlᵢ + dzᵢ/duᵢ = 1: all of it is due to the bound that ∂φ/∂zᵢ presses on, half to each where
that is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import occurs, values_hidden, without_dead_wrappers
from torchimplicit.capture.names import name as name_of
from torchimplicit.condition import Flat, Kind, between, held
from torchimplicit.graph.explicit import Explicit
from torchimplicit.layout import Layout, describe, same_as_z
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.vectors import unpatterned
from torchimplicit.private import pytree

GENERIC = 8  # times what a generic step of the size of an error changes: the most that one of that size may

Output = Callable[[Layout, str], Callable[[Any], Tensor]]  # what flattens the user's output


class Limited(Kind):
    """A condition within bounds: ``gradient`` vanishes where z is free. The user's function is seen as (B, m + 2n): its own m numbers,
    lower bounds, upper bounds."""

    bounded = True

    def condition(self, f: Flat, z: Tensor) -> Tensor:
        return between(*self.slope_and_limits(f, z))

    def slope_and_limits(self, f: Flat, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradient, z, and the lower and upper bounds, from one evaluation."""
        seen = []

        def noted(z: Tensor) -> Tensor:
            seen.append(f(z))
            return seen[-1]

        gradient = self.gradient(noted, z)
        (whole,) = without_dead_wrappers(seen[:1])
        lower, upper = self.limits(whole if torch.is_grad_enabled() else whole.detach(), z.shape[-1])
        return gradient, z, lower, upper

    def residual(self, f: Flat, z: Tensor) -> Tensor:
        return self.of_gradient(*self.slope_and_limits(f, z))

    def of_gradient(self, gradient: Tensor, z: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        return projected_gradient(gradient, z, lower, upper)

    def bounds(self, f: Flat, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.limits(f(z), z.shape[-1])

    def permitted(self, f: Flat, z: Tensor, step: Tensor) -> Tensor:
        """What lies at its bound stays there, and what would come to one goes the other way: who is held does not change."""
        lower, upper = self.bounds(f, z)
        inside = lambda z: (lower < z) & (z < upper)  # noqa: E731
        step = torch.where(inside(z + step), step, -step)
        return torch.where(inside(z) & inside(z + step), step, 0)

    def held(self, f: Flat, z: Tensor) -> Tensor:
        """Which unknowns a bound holds, (B, n)."""
        gradient, z, lower, upper = self.slope_and_limits(f, z)
        at_lower, at_upper = held(gradient, z, lower, upper)
        return at_lower | at_upper | (lower == upper)

    def undecided(self, f: Flat, z: Tensor, error: Tensor) -> Tensor:
        """Systems (B,) where an ``error`` (B, n) of z decides which unknowns are held: one lies at its bound, and its gradient is no
        larger than what z + error may make of it, as a generic such step shows. There the derivative is one of two one-sided ones."""
        limits = []

        def slope(z: Tensor) -> Tensor:
            gradient, _, *bounds = self.slope_and_limits(f, z)
            limits.append([bound.detach() for bound in bounds])
            return gradient

        linearised = Jacobian(slope, z)
        lower, upper = without_dead_wrappers(limits[0])
        return self.touches(linearised, z, lower, upper, error).any(-1)

    def touches(self, slope: Jacobian, z: Tensor, lower: Tensor, upper: Tensor, error: Tensor) -> Tensor:
        """Those unknowns, (B, n), from the gradient, linearised at z."""
        at = (((z - lower).abs() <= error) | ((upper - z).abs() <= error)) & (lower < upper)
        if not occurs(at.any(-1)):
            return at
        change = slope.matvec(error * unpatterned(z)).abs()
        return at & (slope.value.abs() <= GENERIC * change)

    def own(self, whole: Tensor, n: int) -> Tensor:
        """What the user's function returned, (B, m)."""
        return whole[:, : whole.shape[-1] - 2 * n]

    def limits(self, whole: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """The lower and the upper bounds, (B, n)."""
        m = whole.shape[-1] - 2 * n
        return whole[:, m : m + n], whole[:, m + n :]


class Bounded(Limited):
    """A minimum within bounds."""

    minimised = True

    def __init__(self, unbounded: Kind) -> None:
        self.unbounded = unbounded
        self.name = f"{unbounded.name} within bounds"

    def gradient(self, f: Flat, z: Tensor) -> Tensor:
        return self.unbounded.residual(lambda z: self.own(f(z), z.shape[-1]), z)

    def squares(self, f: Flat, z: Tensor) -> Tensor:
        return self.unbounded.squares(lambda z: self.own(f(z), z.shape[-1]), z)

    def objective(self, f: Flat, z: Tensor) -> Tensor:
        return self.unbounded.objective(lambda z: self.own(f(z), z.shape[-1]), z)

    def own(self, whole: Tensor, n: int) -> Tensor:
        """The same, or (B,) for an objective."""
        return super().own(whole, n) if self.unbounded.sums_squares else whole[:, 0]


def projected_gradient(gradient: Tensor, z: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """z − P(z − ∇φ), which is ∇φ between z − u and z − l: written so, a small ∇φ is not lost beside a large z."""
    return torch.maximum(torch.minimum(gradient, z - lower), z - upper)


def within(
    fn: Callable[..., Any], z0: Any, args: Any, bounds: Any, batched: Any, has_aux: bool
) -> tuple[Callable[..., Any], Any, Any, Any]:
    """The function, start, args and ``batched`` of the problem with bounds, which become its first two args."""
    if isinstance(fn, Explicit):  # a graph's own returns them
        return fn, z0, args, batched
    leaves, tree = pytree.tree_flatten(z0)
    lower, upper, inside = limits(bounds, leaves, tree)

    def bounded(z: Any, lower: Any, upper: Any, *args: Any) -> Any:
        out = fn(z, *args)
        if not has_aux:
            return out, lower, upper
        return ((out[0], lower, upper), out[1]) if isinstance(out, tuple) and len(out) == 2 else out

    bounded.__qualname__ = name_of(fn)
    every = pytree.tree_unflatten([True] * len(leaves), tree)
    both = (pytree.tree_unflatten(lower, tree), pytree.tree_unflatten(upper, tree))
    if isinstance(batched, (tuple, list)):
        batched = (every, every, *batched)
    return bounded, pytree.tree_unflatten(inside, tree), (*both, *args), batched


def limits(bounds: Any, leaves: list[Any], tree: pytree.TreeSpec) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The lower and the upper bounds of all leaves of z, and the start between them."""
    if not (isinstance(bounds, (tuple, list)) and len(bounds) == 2):
        raise TypeError(f"bounds must be a pair (lower, upper); got {describe(bounds)}.")
    if any(isinstance(leaf, Tensor) and leaf.is_complex() for leaf in leaves):
        raise TypeError("bounds need real unknowns: complex numbers have no order. Bound their parts.")
    lower = _like(bounds[0], leaves, tree, -torch.inf, "lower")
    upper = _like(bounds[1], leaves, tree, torch.inf, "upper")
    with torch.no_grad():
        possible = [(a <= b) & (a < torch.inf) & (b > -torch.inf) for a, b in zip(lower, upper, strict=True)]
        if not values_hidden() and not all(bool(some.all()) for some in possible):
            raise ValueError(
                "bounds: a lower bound lies above its upper bound, or is NaN, or no number lies between them. Where an unknown has "
                "no bound, let the lower one be -inf and the upper one inf, or None."
            )
        # Where values are hidden none can raise: such a system ends as NONFINITE.
        inside = [
            torch.where(some, leaf.clamp(a, b), torch.nan)
            for some, leaf, a, b in zip(possible, leaves, lower, upper, strict=True)
        ]
    return lower, upper, inside


def _like(bound: Any, leaves: list[Any], tree: pytree.TreeSpec, none: float, name: str) -> list[Tensor]:
    """A bound for every number of every leaf of z."""
    values, structure = pytree.tree_flatten(bound, is_leaf=lambda leaf: leaf is None)
    if structure != tree and len(values) == 1:
        values, structure = values * len(leaves), tree
    if structure != tree:
        raise ValueError(f"the {name} bounds must be a number, a tensor, or a pytree like z; got {describe(bound)}.")
    found = []
    for value, leaf in zip(values, leaves, strict=True):
        if not isinstance(leaf, Tensor):
            raise TypeError(f"z0 must be a tensor or a pytree of tensors; got a leaf that is {describe(leaf)}.")
        if not (value is None or isinstance(value, (int, float, Tensor))) or isinstance(value, bool):
            raise TypeError(f"the {name} bounds must be numbers or tensors; got {describe(value)}.")
        if isinstance(value, Tensor) and (value.is_complex() or value.dtype == torch.bool):
            raise TypeError(f"the {name} bounds must be real numbers; got a {describe(value)}.")
        number = none if value is None else value
        limit = number.to(leaf) if isinstance(number, Tensor) else leaf.new_tensor(float(number))
        try:
            found.append(limit.expand(leaf.shape))
        except RuntimeError as error:
            raise ValueError(
                f"the {name} bounds of shape {tuple(limit.shape)} do not fit z's {tuple(leaf.shape)}."
            ) from error
    return found


@dataclass(frozen=True)
class WithLimits:
    """What flattens the user's output, made to flatten it together with the bounds: (B, m + 2n)."""

    output: Output

    def __call__(self, layout: Layout, name: str) -> Callable[[Any], Tensor]:
        own, limit = self.output(layout, name), same_as_z(layout, "bounds")

        def flatten(out: Any) -> Tensor:
            value, lower, upper = out
            flat = own(value)
            flat = flat if flat.ndim == 2 else flat.unsqueeze(-1)  # an objective
            return torch.cat([flat, limit(lower), limit(upper)], dim=1)

        return flatten
