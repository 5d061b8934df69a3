"""Nonlinear least squares: z* = argmin ½‖r(z, x)‖², by the condition Jᵀr = 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from torchimplicit.adjoints import Adjoint
from torchimplicit.autograd.products import Linearisation
from torchimplicit.bounds import Bounded, WithLimits, within
from torchimplicit.capture.randomness import Randomness
from torchimplicit.compiling.entries import solves
from torchimplicit.compiling.entry import entry_point
from torchimplicit.condition import Flat, Kind, defined
from torchimplicit.constraints import Constraints
from torchimplicit.layout import per_system_vector
from torchimplicit.problems.constrained import minimum_under_constraints
from torchimplicit.problems.losses import check_loss, with_loss
from torchimplicit.problems.pose import Callback, pose_and_solve
from torchimplicit.problems.shared import documented, options_of
from torchimplicit.solution import Solution
from torchimplicit.solvers.method import Method
from torchimplicit.status import OnFailure


class LeastSquares(Kind):
    """The condition is Jᵀr, the gradient of ½‖r‖²; its Jacobian is the full Hessian, JᵀJ + Σ rᵢ ∇²rᵢ."""

    name = "least-squares fit"
    symmetric = True
    minimised = True
    sums_squares = True

    def residual(self, f: Flat, z: Tensor) -> Tensor:
        residuals = Linearisation(f, (z,))
        return defined(residuals.gradient(residuals.value), residuals.value)

    def squares(self, f: Flat, z: Tensor) -> Tensor:
        return f(z)


@solves("least_squares")
@entry_point
@documented
def least_squares(
    r: Callable[..., Any],
    z0: Any,
    args: tuple[Any, ...] = (),
    *,
    bounds: Any = None,
    constraints: Constraints | None = None,
    loss: str = "linear",
    f_scale: float = 1.0,
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
    """Find z* that minimises ½‖r(z, *args)‖², differentiable in args and in every tensor that r uses.

    Args:
        r: r(z, *args) -> a tensor or pytree of tensors, real or complex, whose first dimensions are the batch dimensions.
        {start}
        {bounds}
        {constraints}
        loss: ρ, for ½Σ f_scale² ρ(r²/f_scale²) in place of ½‖r‖²: "linear", or "huber", "soft_l1" or "cauchy", which give outliers,
            |r| ≫ f_scale, less weight (the parts of a complex residual each on their own). See
            :mod:`torchimplicit.problems.losses`.
        f_scale: the size of r from which a residual is an outlier, one number. For one of each observation, or a gradient in it, divide
            r by it.
        solver: a name ("levenberg_marquardt", "gauss_newton", "dogleg", which know the Jacobian of r; "trust_newton", "newton_cg",
            "bfgs", "lbfgs", "nonlinear_cg", within bounds "projected_newton", under constraints "augmented_lagrangian" alone, which
            go downhill; "newton", "chord", "newton_krylov", "pseudo_transient", "broyden", "anderson", "picard", which go to any
            stationary point; "auto") or an object of :mod:`torchimplicit.solvers`. None is "auto"
            (:func:`torchimplicit.solvers.choose`).
        adjoint: how gradients come back: ``Implicit()`` (default, exact), ``GaussNewton()`` (approximate, without
            second derivatives of r), ``Unrolled()``, ``OneStep()``, ``Phantom()``.
        {options}

    Converged when the estimated error of z, ``info.error``, is within the tolerance. Up to n = 64 the Hessian is looked at: it judges
    the error, and a saddle point or a maximum has the status SADDLE, a failure. Beyond, any stationary point counts, by the estimate
    of the method. ``info.residual`` is rms(Jᵀr). The derivative is exact: it is that of Jᵀr = 0 with the full Hessian, not the
    Gauss–Newton approximation unless ``adjoint=GaussNewton()`` asks for it.

    Example::

        t, y = torch.linspace(0, 1, 20), torch.rand(20, requires_grad=True)
        z, info = ti.least_squares(lambda z: z[0] * torch.exp(-z[1] * t) - y, torch.tensor([1.0, 1.0]))
    """
    kind: Kind = LeastSquares()
    check_loss(loss, f_scale)
    output = with_loss(per_system_vector, loss, f_scale)
    if constraints is not None and callable(r):
        return minimum_under_constraints(kind, r, z0, args, constraints, bounds, output, **options_of(locals()))
    if bounds is not None and callable(r):
        r, z0, args, batched = within(r, z0, args, bounds, batched, has_aux)
        kind, output = Bounded(kind), WithLimits(output)
    return pose_and_solve(kind, r, z0, args, output, **options_of(locals()))
