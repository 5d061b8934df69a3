"""The condition g(z, x) = 0 that defines z*, as a pure function of flat unknowns and explicit tensors.

A *kind* of problem says what its condition is in terms of the user's function: g itself (root), z − f(z) (fixed point),
∇φ (minimum), ∇½‖r‖² (least squares). Everything below the problems knows the condition only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

Flat = Callable[[Tensor], Tensor]


class Kind:
    """What of the user's function f(z) must vanish; here f itself.

    name : what is sought, as errors call it.
    symmetric : whether the condition's Jacobian is symmetric.
    positive_definite : whether it is known to be positive definite too.
    minimised : whether it is a Hessian, and the solution a minimum only where that has no negative eigenvalue.
    sums_squares : whether the user's function gives the numbers whose squares are summed.
    bounded : whether the unknowns have bounds.
    constrained : whether a minimum is sought under constraints, and multipliers are among the unknowns.
    multipliers : how many of the last leaves of z they are: their errors do not count.
    near_identity : whether it is the identity less what may be a contraction: that of a fixed point.
    linear : whether it is linear in z: its Jacobian is the same everywhere, and its tolerance is on the residual.
    """

    name: str
    symmetric: bool = False
    positive_definite: bool = False
    minimised: bool = False
    sums_squares: bool = False
    bounded: bool = False
    constrained: bool = False
    multipliers: int = 0
    near_identity: bool = False
    linear: bool = False

    def residual(self, f: Flat, z: Tensor) -> Tensor:
        """What solvers make vanish: (B, n) -> (B, n). Signed so that a plain step is z − residual."""
        return f(z)

    def condition(self, f: Flat, z: Tensor) -> Tensor:
        """What vanishes at the solution and has its derivative, (B, n): the same, unless there are bounds."""
        return self.residual(f, z)

    def gradient(self, f: Flat, z: Tensor) -> Tensor:
        """The gradient (B, n) of the objective of a minimum or a fit, where there are no bounds the condition itself."""
        return self.residual(f, z)

    def of_gradient(self, gradient: Tensor, z: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """What solvers make vanish, from the gradient and the bounds, (B, n) each."""
        return gradient

    def bounds(self, f: Flat, z: Tensor) -> tuple[Tensor, Tensor]:
        """The lower and the upper bounds of the unknowns, (B, n)."""
        return torch.full_like(z, -torch.inf), torch.full_like(z, torch.inf)

    def held(self, f: Flat, z: Tensor) -> Tensor:
        """Which unknowns a bound holds, (B, n)."""
        return torch.zeros_like(z, dtype=torch.bool)

    def permitted(self, f: Flat, z: Tensor, step: Tensor) -> Tensor:
        """The step from z, or what may be taken in its place to see the condition beside z: (B, n) each."""
        return step

    def undecided(self, f: Flat, z: Tensor, error: Tensor) -> Tensor | None:
        """Systems (B,) whose derivative is one-sided, where z may be off by an ``error`` (B, n); None where there are none."""
        return None

    def squares(self, f: Flat, z: Tensor) -> Tensor:
        """The numbers (B, m) whose sum of squares is smallest at the solution."""
        return self.residual(f, z)

    def objective(self, f: Flat, z: Tensor) -> Tensor:
        """What is smallest at the solution, (B,)."""
        return self.squares(f, z).square().sum(-1) / 2

    def objective_and_constraints(self, f: Flat, z: Tensor) -> tuple[Tensor, Tensor]:
        """Of a ``constrained`` kind: what is smallest at the solution, (B,), and the constraints, equalities first, (B, m)."""
        raise NotImplementedError

    def slope(self, f: Flat, z: Tensor) -> Tensor:
        """Of a constrained kind: the gradient of the Lagrangian in those numbers of z that are no multipliers, (B, m)."""
        raise NotImplementedError

    def unknowns(self, z: Tensor) -> int:
        """Of a ``constrained`` kind: how many numbers of z (B, n) are no multipliers."""
        raise NotImplementedError


def defined(gradient: Tensor, objective: Tensor) -> Tensor:
    """The gradient (B, n), NaN where the objective, (B,) or (B, m), is not finite: there its gradient, 0 or not, says nothing."""
    value = objective.detach()
    undefined = value - value
    return gradient + (undefined if value.ndim == 2 else undefined.unsqueeze(-1)).sum(-1, keepdim=True)


def held(gradient: Tensor, z: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Which unknowns their lower, and which their upper bounds hold, (B, n) each. Where the gradient is NaN, none."""
    at_lower = (z < lower) | ((z == lower) & (gradient > 0))
    at_upper = (z > upper) | ((z == upper) & (gradient < 0))
    known = ~gradient.isnan()
    return at_lower & known, at_upper & known


def between(gradient: Tensor, z: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The condition of a minimum within bounds, (B, n): the gradient in the free unknowns, z less its bound in those that are held.

    Where both bounds are the same and ∇φ is 0, each has half of the derivative.
    """
    at_lower, at_upper = held(gradient, z, lower, upper)
    down, up = z - lower, z - upper
    fixed = (lower == upper) & (gradient == 0)
    free = torch.where(fixed, down / 2 + up / 2, gradient)
    return torch.where(at_lower, down, torch.where(at_upper, up, free))


class Vmap(NamedTuple):
    """A vmap level around a condition: its size, and for each tensor 0 or None, as it carries the batch or does not."""

    size: int
    dims: tuple[int | None, ...]


@dataclass(frozen=True)
class Condition:
    """g as a pure function ``condition(z, *tensors)``: (B, n) -> (B, n), for any number of vmap levels (outermost first).

    function : the user's function as a pure function of z and explicit tensors.
    kind : what of it must vanish.
    call : the user's function, where it is read for a graph.
    changed_since : the error that names which of the explicit tensors were changed in place, where somebody can tell.
    """

    function: Callable[..., Tensor]
    kind: Kind
    vmaps: tuple[Vmap, ...] = ()
    call: Any = None
    changed_since: Callable[[], RuntimeError] | None = None

    def __call__(self, z: Tensor, *tensors: Tensor) -> Tensor:
        return self.kind.condition(self.at(tensors), z)

    def permitted(self, z: Tensor, step: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """The step from z, or what may be taken in its place to see the condition beside z."""
        return self.kind.permitted(self.at(tensors), z, step)

    def at(self, tensors: Sequence[Tensor]) -> Flat:
        """The user's function of z alone."""
        return lambda z: self.function(z, *tensors)

    def vmapped(self, size: int, dims: Sequence[int | None]) -> Condition:
        """The condition of ``size`` times as many systems: those tensors whose dim is 0 have one more dimension in front."""
        one = self.function

        def all_of_them(z: Tensor, *tensors: Tensor) -> Tensor:
            z = z.unflatten(0, (size, -1)) if z.shape[0] else z.new_zeros(size, 0, z.shape[1])
            return torch.vmap(one, in_dims=(0, *dims), randomness="same")(z, *tensors).flatten(0, 1)

        return replace(self, function=all_of_them, vmaps=(Vmap(size, tuple(dims)), *self.vmaps))
