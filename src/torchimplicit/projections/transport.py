"""Transport plans and doubly stochastic matrices: the entropic projections of Sinkhorn's algorithm, in the log domain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.layout import describe
from torchimplicit.problems.minimize import minimize
from torchimplicit.projections.arguments import Number, check, like, possible
from torchimplicit.status import OnFailure

BALANCED = 1e3  # in units of eps: a difference of the totals, beside these, that is no rounding error


def transport(
    cost: Tensor, a: Tensor, b: Tensor, temperature: Number = 1.0, *, on_failure: OnFailure = "warn"
) -> Tensor:
    """The plan P ≥ 0 with row sums a and column sums b that minimises Σ cost P + temperature Σ P (log P − 1).

    P = a softmax((g − cost) / temperature) along each row, for potentials g of the columns, which minimise a convex function, the
    semi-dual. A constant added to g changes nothing: its mean is held at 0, so that the minimum is one point. Newton's method finds it
    at temperatures at which Sinkhorn's alternating steps crawl; the derivative is that of the minimum.

    Args:
        cost: matrices (..., m, n).
        a, b: positive vectors, (..., m) and (..., n), with the same sum. Gradients flow to them, and to the temperature. Of a change of
            one of their totals alone there is no plan: what the gradients say there is not to be used.
        temperature: positive; a number, or a tensor (...).
        on_failure: "warn", "raise", "nan" or "ignore", of the search for g and of its derivative.

    Raises:
        ValueError: a or b is not positive, or their sums differ; the temperature is not positive.
    Source: Cuturi and Peyré, A smoothed dual approach for variational Wasserstein problems, SIAM J. Imaging Sci. 9 (2016).
    """
    check(cost, 2)
    for name, t in (("a", a), ("b", b)):
        if not isinstance(t, Tensor) or not t.ndim:
            raise TypeError(
                f"transport: {name} must be a tensor of vectors; got {describe(t)}, beside a {describe(cost)}."
            )
    if a.shape[-1] != cost.shape[-2] or b.shape[-1] != cost.shape[-1]:
        raise ValueError(
            f"transport: a and b must have as many numbers as the cost has rows and columns; got a {describe(cost)}, "
            f"a of shape {tuple(a.shape)}, b of shape {tuple(b.shape)}."
        )
    shape = torch.broadcast_shapes(cost.shape[:-2], a.shape[:-1], b.shape[:-1])
    cost, a, b = (t.expand(*shape, *t.shape[k:]) for t, k in ((cost, -2), (a, -1), (b, -1)))
    eps = like(temperature, cost, "transport: the temperature", shape)
    with torch.no_grad():
        totals = a.sum(-1), b.sum(-1)
        rounding = BALANCED * torch.finfo(cost.dtype).eps * totals[0].abs()
        ok = (a > 0).all(-1) & (b > 0).all(-1) & (eps > 0) & ((totals[0] - totals[1]).abs() <= rounding)
    message = "transport: a, b and the temperature must be positive, and the sums of a and b the same"
    scaled = possible((-cost / eps[..., None, None]).flatten(-2), ok, message).unflatten(-1, cost.shape[-2:])
    start = torch.zeros_like(scaled[..., 0, :]).detach()
    options: dict[str, Any] = {"batch_ndim": len(shape), "on_failure": on_failure}
    g = minimize(_semidual, start, (scaled, a, b), **options).value
    return a.unsqueeze(-1) * torch.softmax(g.unsqueeze(-2) + scaled, -1)


def _semidual(g: Tensor, scaled: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Σ a log Σ exp(g + scaled) − b g over rows and columns, for g with mean 0: its slope is the column sums less b."""
    total = a.sum(-1)
    smooth = (a * torch.logsumexp(g.unsqueeze(-2) + scaled, -1)).sum(-1)
    return (smooth - (b * g).sum(-1) + total * g.mean(-1).square() / 2) / total


def birkhoff(scores: Tensor, temperature: Number = 1.0, *, on_failure: OnFailure = "warn") -> Tensor:
    """The doubly stochastic P, all row and column sums 1, that maximises Σ scores P − temperature Σ P (log P − 1): a soft permutation,
    and the limit of Sinkhorn's algorithm on exp(scores / temperature).

    Args:
        scores: matrices (..., n, n).
        temperature: positive; a number, or a tensor (...). Towards 0, P is the permutation of the largest score.
        on_failure: "warn", "raise", "nan" or "ignore".
    """
    check(scores, 2)
    if scores.shape[-1] != scores.shape[-2]:
        raise ValueError(f"birkhoff: matrices must be square, (..., n, n); got a {describe(scores)}.")
    ones = torch.ones_like(scores[..., 0])
    return transport(-scores, ones, ones, temperature, on_failure=on_failure)
