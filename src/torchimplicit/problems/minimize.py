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
from torchimplicit.constraints import Constraints
from torchimplicit.layout import per_system_scalar
from torchimplicit.problems.constrained import minimum_under_constraints
from torchimplicit.problems.pose import Callback, pose_and_solve
from torchimplicit.problems.shared import documented, options_of
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
@documented
def minimize(
    phi: Callable[..., Any],
    z0: Any,
    args: tuple[Any, ...] = (),
    *,
    bounds: Any = None,
    constraints: Constraints | None = None,
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
    """Find z* that minimises phi(z, *args), differentiable in args and in every tensor that phi uses.

    Args:
        phi: phi(z, *args) -> a real number, or one per system: the shape of the batch dimensions.
        {start}
        {bounds}
        {constraints}
        solver: a name ("trust_newton", "newton_cg", "bfgs", "lbfgs", "nonlinear_cg", within bounds "projected_newton", under
            constraints "augmented_lagrangian" alone, which go downhill; "newton", "chord", "newton_krylov", "pseudo_transient",
            "broyden", "anderson", "picard", which go to any stationary point; "auto") or an object of
            :mod:`torchimplicit.solvers`. None is "auto" (:func:`torchimplicit.solvers.choose`).
        {adjoint}
        {options}

    Converged when the estimated error of z, ``info.error``, is within the tolerance. Up to n = 64 the Hessian is looked at: it judges
    the error, and a saddle point or a maximum has the status SADDLE, a failure. Beyond, any stationary point counts, by the estimate
    of the method. The derivative is that of the stationary point, with the exact Hessian.

    Example::

        target = torch.randn(3, requires_grad=True)
        z, info = ti.minimize(lambda z: ((z - target) ** 2).sum() + z.exp().sum(), torch.zeros(3))
    """
    kind: Kind = Minimum()
    output: Output = per_system_scalar
    if constraints is not None and callable(phi):
        return minimum_under_constraints(kind, phi, z0, args, constraints, bounds, output, **options_of(locals()))
    if bounds is not None and callable(phi):
        phi, z0, args, batched = within(phi, z0, args, bounds, batched, has_aux)
        kind, output = Bounded(kind), WithLimits(output)
    return pose_and_solve(kind, phi, z0, args, output, **options_of(locals()))
