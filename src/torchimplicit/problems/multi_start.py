"""Many starts for each problem, and the best of what they lead to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.problems.least_squares import least_squares
from torchimplicit.problems.minimize import minimize
from torchimplicit.solution import Solution


@torch.compiler.disable
def multi_start(
    solve: Callable[..., Solution],
    fn: Callable[..., Any],
    starts: Any,
    args: tuple[Any, ...] = (),
    *,
    batch_ndim: int = 0,
    **options: Any,
) -> Solution:
    """``solve(fn, z0, args, ...)`` from that one of several starts, for each problem, that leads to the best solution.

    All starts are solved at once, under ``torch.vmap``. Of those that converged, the best is the one with the smallest objective
    (``ti.minimize``), sum of squares (``ti.least_squares``) or residual (``ti.root``, ``ti.fixed_point``); where none converged, of
    all. It is then solved again, so that value, info and gradient are those of an ordinary call.

    Args:
        solve: ``ti.root``, ``ti.fixed_point``, ``ti.minimize`` or ``ti.least_squares``.
        fn, args, batch_ndim, options: as there; ``fn`` must be one that ``torch.vmap`` takes.
        starts: like z0, with a dimension in front that counts the starts. Each element of the batch chooses its own.

    Example::

        z, info = ti.multi_start(ti.minimize, phi, torch.linspace(-2, 2, 16))
    """
    quiet = {**options, "on_failure": "ignore", "trace": False, "callback": None, "has_aux": False, "batched": None}
    value_of = (lambda z, *args: fn(z, *args)[0]) if options.get("has_aux") else fn

    def attempt(z0: Any) -> tuple[Tensor, Tensor]:
        z, info = solve(value_of, z0, args, batch_ndim=batch_ndim, **quiet)
        if solve is minimize:
            return value_of(z, *args), info.converged
        if solve is least_squares:
            leaves = pytree.tree_leaves(value_of(z, *args))
            squares = [leaf.abs().square().flatten(batch_ndim).sum(-1) for leaf in (t.unsqueeze(-1) for t in leaves)]
            return torch.stack(squares).sum(0), info.converged
        return info.residual, info.converged

    with torch.no_grad():
        cost, converged = torch.vmap(attempt)(starts)
        cost = cost.nan_to_num(nan=torch.inf)
        among = torch.where(converged | ~converged.any(0), cost, torch.inf)
        best = among.argmin(0)

        def chosen(leaf: Tensor) -> Tensor:
            index = best.reshape(1, *best.shape, *(1,) * (leaf.ndim - 1 - best.ndim)).expand(1, *leaf.shape[1:])
            return leaf.gather(0, index)[0]

        z0 = pytree.tree_map(chosen, starts)
    return solve(fn, z0, args, batch_ndim=batch_ndim, **options)
