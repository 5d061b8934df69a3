"""Many starts for each problem, and the best of what they lead to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchimplicit.capture.randomness import Randomness, frozen
from torchimplicit.compiling.entry import entry_point
from torchimplicit.layout import Layout, per_system_vector
from torchimplicit.private import pytree
from torchimplicit.problems.fixed_point import fixed_point
from torchimplicit.problems.least_squares import least_squares
from torchimplicit.problems.losses import with_loss
from torchimplicit.problems.minimize import minimize
from torchimplicit.problems.root import root
from torchimplicit.solution import Solution


@entry_point
def multi_start(
    solve: Callable[..., Solution],
    fn: Callable[..., Any],
    starts: Any,
    args: tuple[Any, ...] = (),
    *,
    batch_ndim: int = 0,
    randomness: Randomness = "error",
    **options: Any,
) -> Solution:
    """``solve(fn, z0, args, ...)`` from that one of several starts, for each problem, that leads to the best solution.

    All starts are solved at once, under ``torch.vmap``. Of those that converged, the best is the one with the smallest objective
    (``ti.minimize``), sum of squares, or of the losses (``ti.least_squares``), or residual (``ti.root``, ``ti.fixed_point``); where
    none converged, of all. It is then solved again, so that value, info and gradient are those of an ordinary call.

    Args:
        solve: ``ti.root``, ``ti.fixed_point``, ``ti.minimize`` or ``ti.least_squares``.
        fn, args, batch_ndim, options: as there; ``fn`` must be one that ``torch.vmap`` takes.
        randomness: "frozen": the same random numbers in all attempts and in the last solve.
        starts: like z0, with a dimension in front that counts the starts, at least one. Each element of the batch chooses its own.

    Raises:
        TypeError, ValueError: an argument does not fit; the message says what was passed and what was expected.

    Example::

        z, info = ti.multi_start(ti.minimize, phi, torch.linspace(-2, 2, 16))
    """
    if solve not in (root, fixed_point, minimize, least_squares):
        raise TypeError(
            f"multi_start: the first argument must be ti.root, ti.fixed_point, ti.minimize or ti.least_squares, by which it is "
            f"known what is best; got {solve!r}. Their options are passed by name."
        )
    _check_starts(starts, batch_ndim)
    fn = frozen(fn, randomness, pytree.tree_leaves(starts)[0].device)
    quiet = {**options, "on_failure": "ignore", "trace": False, "callback": None, "has_aux": False, "batched": None}
    value_of = (lambda z, *args: fn(z, *args)[0]) if options.get("has_aux") else fn

    def attempt(z0: Any) -> tuple[Tensor, Tensor]:
        z, info = solve(value_of, z0, args, batch_ndim=batch_ndim, **quiet)
        if solve is minimize:
            return value_of(z, *args).reshape(info.converged.shape), info.converged
        if solve is least_squares:
            residuals = with_loss(per_system_vector, options.get("loss", "linear"), options.get("f_scale", 1.0))
            flat = residuals(Layout.of(z0, batch_ndim), "multi_start: the function")(value_of(z, *args))
            return flat.square().sum(-1).reshape(info.converged.shape), info.converged
        return info.residual, info.converged

    with torch.no_grad():
        cost, converged = torch.vmap(attempt, randomness="same")(starts)
        cost = cost.nan_to_num(nan=torch.inf)
        among = torch.where(converged | ~converged.any(0), cost, torch.inf)
        best = among.argmin(0)

        def chosen(leaf: Tensor) -> Tensor:
            index = best.reshape(1, *best.shape, *(1,) * (leaf.ndim - 1 - best.ndim)).expand(1, *leaf.shape[1:])
            return leaf.gather(0, index)[0]

        z0 = pytree.tree_map(chosen, starts)
    return solve(fn, z0, args, batch_ndim=batch_ndim, **options)


def _check_starts(starts: Any, batch_ndim: int) -> None:
    """Raise unless every leaf is a tensor that z0 may be, with as many starts in front as the others."""
    layout = Layout.of(starts, 0, "starts")
    wanted = "like z0, with a dimension in front that counts the starts"
    for shape in layout.shapes:
        if len(shape) < 1 + batch_ndim:
            raise ValueError(
                f"starts must be {wanted} (and batch_ndim={batch_ndim} more for the batch); got a leaf of shape {tuple(shape)}. "
                f"Stack the starts: torch.stack(list_of_z0)."
            )
        if shape[0] != layout.shapes[0][0] or not shape[0]:
            raise ValueError(
                f"starts must be {wanted}, the same number, at least 1, in every leaf; got shapes "
                f"{[tuple(shape) for shape in layout.shapes]}."
            )
