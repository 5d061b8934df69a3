"""Fixed points: z* with z* = f(z*, x); deep equilibrium layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from torchimplicit.adjoints import Adjoint
from torchimplicit.capture.randomness import Randomness
from torchimplicit.compiling.entries import solves
from torchimplicit.compiling.entry import entry_point
from torchimplicit.condition import Flat, Kind
from torchimplicit.layout import same_as_z
from torchimplicit.problems.pose import Callback, pose_and_solve
from torchimplicit.problems.shared import documented, options_of
from torchimplicit.solution import Solution
from torchimplicit.solvers.method import Method
from torchimplicit.status import OnFailure


class FixedPoint(Kind):
    """The condition is z − f(z), so that a plain step z − residual is f(z)."""

    name = "fixed point"
    near_identity = True

    def residual(self, f: Flat, z: Tensor) -> Tensor:
        return z - f(z)


@solves("fixed_point", like_z=True)
@entry_point
@documented
def fixed_point(
    f: Callable[..., Any],
    z0: Any,
    args: tuple[Any, ...] = (),
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
    """Find z* = f(z*, *args), differentiable in args and in every tensor that f uses.

    Args:
        f: f(z, *args) -> like z.
        {start}
        solver: a name ("newton", "chord", "newton_krylov", "dogleg", "pseudo_transient", "broyden", "anderson", "picard", "auto") or
            an object of :mod:`torchimplicit.solvers`. None is "auto" (:func:`torchimplicit.solvers.choose`): plain steps, and
            "anderson" from where these are slow.
        {adjoint}
        {options}

    Converged when the estimated error of z, ``info.error``, is within the tolerance: the residual f(z) − z times 1 / (1 − θ), θ the
    contraction seen.

    Example::

        W = torch.randn(8, 8) / 8
        x = torch.randn(8, requires_grad=True)
        z, info = ti.fixed_point(lambda z: torch.tanh(W @ z + x), torch.zeros(8))
    """
    return pose_and_solve(FixedPoint(), f, z0, args, same_as_z, **options_of(locals()))
