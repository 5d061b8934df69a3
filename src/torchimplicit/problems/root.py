"""Roots: z* with g(z*, x) = 0."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torchimplicit.adjoints import Adjoint
from torchimplicit.capture.randomness import Randomness
from torchimplicit.compiling.entries import solves
from torchimplicit.compiling.entry import entry_point
from torchimplicit.condition import Kind
from torchimplicit.layout import same_as_z
from torchimplicit.problems.pose import Callback, pose_and_solve
from torchimplicit.problems.shared import documented, options_of
from torchimplicit.solution import Solution
from torchimplicit.solvers.method import Method
from torchimplicit.status import OnFailure


class Root(Kind):
    """The condition is g itself."""

    name = "root"


NOT_SQUARE = (
    " For another number of equations than of unknowns take ti.least_squares, which makes them as small as can be."
)
as_many_as_unknowns = partial(same_as_z, hint=NOT_SQUARE)


@solves("root", like_z=True)
@entry_point
@documented
def root(
    g: Callable[..., Any],
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
    """Find z* with g(z*, *args) = 0, differentiable in args and in every tensor that g uses.

    Args:
        g: g(z, *args) -> like z.
        {start}
        solver: a name ("newton", "chord", "newton_krylov", "dogleg", "pseudo_transient", "broyden", "anderson", "picard", "auto";
            for one unknown in each system "chandrupatla", "itp", "bisection") or an object of :mod:`torchimplicit.solvers`.
            None is "auto" (:func:`torchimplicit.solvers.choose`): Newton's method, and more robust ones for the systems that it
            does not solve; ``info.tried`` and ``info.solved_by`` tell which.
        {adjoint}
        {options}

    Converged when the estimated error of z, ``info.error``, is within the tolerance, whatever the unit of g and the start.

    Example::

        x = torch.tensor(2.0, requires_grad=True)
        z, info = ti.root(lambda z: z**3 + z - x, torch.tensor(1.0))
        z.backward()  # dz/dx = 1 / (3 z² + 1)
    """
    return pose_and_solve(Root(), g, z0, args, as_many_as_unknowns, **options_of(locals()))
