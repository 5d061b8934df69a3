"""Complementarity problems: z* within bounds, and F(z*, x) zero, or pressing z* against one of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchimplicit.adjoints import Adjoint
from torchimplicit.bounds import Limited, WithLimits, within
from torchimplicit.capture.randomness import Randomness
from torchimplicit.compiling.entry import entry_point
from torchimplicit.condition import Flat
from torchimplicit.layout import same_as_z
from torchimplicit.problems.pose import Callback, pose_and_solve
from torchimplicit.problems.shared import documented, options_of
from torchimplicit.solution import Solution
from torchimplicit.solvers.method import Method
from torchimplicit.status import OnFailure


class Complementarity(Limited):
    """What solvers make vanish is Fischer's and Burmeister's function of z and F, whose square has a derivative everywhere."""

    name = "solution of the complementarity problem"

    def gradient(self, f: Flat, z: Tensor) -> Tensor:
        return self.own(f(z), z.shape[-1])

    def of_gradient(self, gradient: Tensor, z: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        below = torch.where(upper < torch.inf, -fischer_burmeister(upper - z, -gradient), gradient)
        return torch.where(lower > -torch.inf, fischer_burmeister(z - lower, below), below)


def fischer_burmeister(a: Tensor, b: Tensor) -> Tensor:
    """a + b − √(a² + b²): 0 exactly where a ≥ 0, b ≥ 0 and ab = 0. At (0, 0), where it has a kink, with the derivative along (1, 1);
    where a is infinite it is b.

    Source: Fischer, A special Newton-type optimization method, Optimization 24 (1992); for boxes Billups, Algorithms for
    complementarity problems and generalized equations, thesis, Wisconsin (1995), section 3.2.
    """
    known = a.detach().isfinite()
    kink = (a.detach() == 0) & (b.detach() == 0)
    safe = known & ~kink
    one, other = torch.where(safe, a, 1), torch.where(safe, b, 1)
    total, norm = one + other, torch.hypot(one, other)
    # a + b − r = 2ab / (a + b + r), which keeps its digits where a + b > 0
    positive = total.detach() > 0
    value = torch.where(positive, 2 * one * other / torch.where(positive, total + norm, 1), total - norm)
    at_kink = (1 - 0.5**0.5) * (torch.where(kink, a, 0) + b)
    return torch.where(safe, value, torch.where(kink, at_kink, b))


@entry_point
@documented
def complementarity(
    F: Callable[..., Any],
    z0: Any,
    args: tuple[Any, ...] = (),
    lower: Any = 0.0,
    upper: Any = None,
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
    sparsity: Any = None,
) -> Solution:
    """Find z* with lower ≤ z* ≤ upper and, in each number of it, F(z*, *args) ≥ 0 where z* is at its lower bound, ≤ 0 where at its
    upper one, and 0 between: by default z* ≥ 0, F ≥ 0, z* F = 0. It is differentiable in args, in the bounds, and in every tensor that
    F uses.

    The variational inequality ⟨F(z*), y − z*⟩ ≥ 0 for all y in the box is the same; so are equilibria of games whose players choose
    within bounds (F: the gradients of what each minimises, in his own choice), of markets, and of bodies in contact (z: the forces
    between them, F: the gaps).

    Args:
        F: F(z, *args) -> like z.
        {start}
        lower, upper: bounds, each a number, a tensor that broadcasts to z, a pytree like z, or None; infinite where there is none.
            Gradients flow to them.
        solver: one for roots ("newton", "dogleg", "newton_krylov", ...), which makes Fischer's and Burmeister's function of z and F
            vanish, its Newton steps those of the semismooth Newton method; one that keeps to the bounds itself ("interior_point",
            "active_set"); or an object of :mod:`torchimplicit.solvers`. None is "auto" (:func:`torchimplicit.solvers.choose`).
        {adjoint}
        {options}

    Which numbers are at their bounds is decided at z*, in no unit of F; the derivative is that of z* = bound in those, and of F = 0 in
    the others. Where a number is at its bound and F is 0 too, to within the tolerance, the derivative is one-sided: a backward
    reports the status DEGENERATE.

    Example::

        q = torch.tensor([-1.0, 2.0], requires_grad=True)
        M = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
        z, info = ti.complementarity(lambda z: M @ z + q, torch.ones(2))  # z = (1/2, 0)
    """
    if callable(F):
        F, z0, args, batched = within(F, z0, args, (lower, upper), batched, has_aux)
    output = WithLimits(partial(same_as_z, hint=NOT_SQUARE))
    return pose_and_solve(Complementarity(), F, z0, args, output, **options_of(locals()))


NOT_SQUARE = " A complementarity problem has one number of F for each unknown."
