"""Boxes, hyperplanes, the simplex, affine sets."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.layout import describe
from torchimplicit.projections.arguments import Number, check, common_shape, like, possible, undefined

INCONSISTENT = 1e4  # in units of eps: a residual of A z = b, beside the sizes of its parts, that is no rounding error


def box(v: Tensor, lower: Number, upper: Number) -> Tensor:
    """The nearest z with lower ≤ z ≤ upper, in each number of v.

    Args:
        v: any shape.
        lower, upper: numbers, or tensors that broadcast to v; infinite where there is none. Gradients flow to them.

    Raises:
        ValueError: a lower bound lies above its upper one, or is NaN.
    """
    check(v, 0)
    low = like(lower, v, "box: lower", v.shape)
    high = like(upper, v, "box: upper", v.shape)
    z = torch.where(v < low, low, torch.where(v > high, high, v))
    z = torch.where(low == high, low / 2 + high / 2, z)  # both move it together
    message = "box: a lower bound lies above its upper bound, or is NaN"
    return possible(z.unsqueeze(-1), (low <= high).detach(), message).squeeze(-1)


def simplex(v: Tensor, total: Number = 1.0) -> Tensor:
    """The nearest z with z ≥ 0 and Σ z = total.

    Args:
        v: vectors (..., n).
        total: positive; a number, or a tensor (...). Gradients flow to it.

    Raises:
        ValueError: ``total`` is not positive.
    """
    check(v)
    sum_ = like(total, v, "simplex: the total")
    common_shape("simplex", {"v": v}, {"total": sum_})
    z = box_and_hyperplane(v, 1.0, torch.where(sum_ > 0, sum_, 1), 0.0, torch.inf)
    return possible(z, (sum_.detach() > 0).expand(z.shape[:-1]), "simplex: the total is not positive")


def box_and_hyperplane(v: Tensor, a: Number, b: Number, lower: Number, upper: Number) -> Tensor:
    """The nearest z with aᵀz = b and lower ≤ z ≤ upper: zᵢ = vᵢ − μaᵢ in the box, at the one μ for which aᵀz = b.

    aᵀz falls with μ, linearly between the 2n values of μ at which some zᵢ meets a bound: the two around the root, found by bisection
    among them, say which zᵢ are at which bound there, and μ follows from the others.

    Args:
        v: vectors (..., n).
        a, lower, upper: numbers, or tensors that broadcast to v; bounds may be infinite. Gradients flow to all.
        b: a number, or a tensor (...).

    Raises:
        ValueError: the box is empty, or the hyperplane does not meet it.
    Source: Kiwiel, Breakpoint searching algorithms for the continuous quadratic knapsack problem, Math. Program. 112 (2008).
    """
    check(v)
    given = {"a": a, "lower": lower, "upper": upper, "b": b}
    a, low, high, level = (like(value, v, f"box_and_hyperplane: {name}") for name, value in given.items())
    shape = common_shape("box_and_hyperplane", {"v": v, "a": a, "lower": low, "upper": high}, {"b": level})
    v, a, low, high = (t.expand(shape) for t in (v, a, low, high))
    level = level.expand(shape[:-1])
    with torch.no_grad():
        size = torch.stack([(a * z).abs().where((a != 0) & z.isfinite(), 0).sum(-1) for z in (v, low, high)]).amax(0)
        least, most = _extremes(a, low, high)
        slack = 64 * torch.finfo(v.dtype).eps * (size + level.abs())
        ok = (low <= high).all(-1) & (least <= level + slack) & (level - slack <= most)
        ok = ok | (undefined(v).squeeze(-1) + level).isnan()
        near = _solution(v, a, low, high, level)[0]
    # v − near · a has the same projection, and in its smaller numbers no digits cancel
    closer = v - torch.where(near.isfinite(), near, 0) * a
    mu, free, held = _solution(closer, a, low, high, level)
    z = torch.where(free, closer - mu * a, held) + undefined(v)
    return possible(z, ok, "box_and_hyperplane: no z of the box lies on the hyperplane")


def _solution(v: Tensor, a: Tensor, low: Tensor, high: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """μ (..., 1), which zᵢ are between their bounds, and at which bound the others are."""
    met = a != 0
    with torch.no_grad():
        first, last = _meets(v, a, low, high)
        start, end = _interval(v, a, low, high, level, torch.cat([first, last], -1).sort(-1).values)
        free = torch.where(met, (first <= start) & (last >= end), (v >= low) & (v <= high))
        # before it meets a bound it is at the one it comes from
        at_high = torch.where(met, (end <= first) == (a > 0), v > high)
    held = torch.where(at_high, high, low)
    moving = free & met
    fixed = torch.where(moving, 0, a * torch.where(free, v, held).where(met, 0)).sum(-1)
    weight = torch.where(moving, a.square(), 0).sum(-1)
    excess = torch.where(moving, a * v, 0).sum(-1) + fixed - level
    return (excess / torch.where(weight > 0, weight, 1)).unsqueeze(-1), free, held


def _meets(v: Tensor, a: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The μ from which each zᵢ is free, and up to which it is; infinite where it never meets a bound."""
    divisor = torch.where(a == 0, 1, a)
    one, other = (v - high) / divisor, (v - low) / divisor
    first, last = torch.minimum(one, other), torch.maximum(one, other)
    return torch.where(a == 0, -torch.inf, first), torch.where(a == 0, torch.inf, last)


def _interval(v: Tensor, a: Tensor, low: Tensor, high: Tensor, b: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """The neighbours among the sorted points, (..., 1) each, between which aᵀz comes to b."""
    ends = points.new_full((*points.shape[:-1], 1), torch.inf)
    points = torch.cat([-ends, points, ends], -1)
    before = torch.zeros_like(points[..., :1], dtype=torch.int64)
    after = before + points.shape[-1] - 1
    for _ in range(points.shape[-1].bit_length()):
        middle = (before + after) // 2
        mu = points.gather(-1, middle)
        z = torch.minimum(torch.maximum(v - mu * a, low), high)
        above = (a * z).where((a != 0) & mu.isfinite(), 0).sum(-1, keepdim=True) >= b.unsqueeze(-1)
        above = torch.where(mu.isfinite(), above, mu < 0)
        before, after = torch.where(above, middle, before), torch.where(above, after, middle)
    return points.gather(-1, before), points.gather(-1, after)


def _extremes(a: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest aᵀz in the box."""
    one, other = ((a * bound).where(a != 0, 0) for bound in (low, high))
    return torch.minimum(one, other).sum(-1), torch.maximum(one, other).sum(-1)


def affine(v: Tensor, A: Tensor, b: Tensor) -> Tensor:
    """The nearest z with A z = b, z = v − A⁺(A v − b). Rows of A may depend on each other, and their gradients are those at a
    constant rank.

    Args:
        v: vectors (..., n).
        A: matrices (..., m, n).
        b: vectors (..., m).

    Raises:
        ValueError: no z solves A z = b, or the shapes do not fit.
        TypeError: A or b is no tensor of v's dtype.
    """
    check(v)
    for name, t, core in (("A", A, 2), ("b", b, 1)):
        if not isinstance(t, Tensor) or t.dtype != v.dtype or t.device != v.device:
            raise TypeError(
                f"affine: {name} must be a tensor of v's dtype and device; got {describe(t)}, beside a {describe(v)}."
            )
        if t.ndim < core:
            raise ValueError(
                f"affine: A must be matrices (..., m, n) and b vectors (..., m); got as {name} a {describe(t)}."
            )
    if A.shape[-1] != v.shape[-1] or A.shape[-2] != b.shape[-1]:
        raise ValueError(
            f"affine: A (..., m, n) must have a column for each number of v (..., n), and a row for each of b (..., m); got v of "
            f"shape {tuple(v.shape)}, A {tuple(A.shape)}, b {tuple(b.shape)}."
        )
    residual = (A @ v.unsqueeze(-1)).squeeze(-1) - b
    z = v - (torch.linalg.pinv(A) @ residual.unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():
        left = torch.linalg.vector_norm((A @ z.unsqueeze(-1)).squeeze(-1) - b, dim=-1)
        size = torch.linalg.matrix_norm(A) * (torch.linalg.vector_norm(z, dim=-1) + torch.linalg.vector_norm(v, dim=-1))
        bound = INCONSISTENT * torch.finfo(v.dtype).eps * (size + torch.linalg.vector_norm(b, dim=-1))
    return possible(z, ~(left > bound), "affine: A z = b has no solution")
