"""From a point near the solution to the solution itself: which constraints hold it, and the linear system that follows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished, occurs, values_hidden
from torchimplicit.linear.vectors import unpatterned
from torchimplicit.programs.condensed import Condensed
from torchimplicit.programs.quadratic import Programs
from torchimplicit.programs.rows import beside, largest, times

CHANGES = 10  # of the set of constraints that hold the solution
SOLVES = 2, 6  # of a linear system, each of what the last has left: at least, and at most
EXACT = 1e-12  # beside the largest terms: what numbers that these leave are known to
LAST = 1e-15  # a change of the solution beside its size that need not be made any more
WEAK = 1e-9  # of the size of the terms: a slack and a multiplier that are both smaller are 0
ROUNDED = 1e-5  # terms that are so small beside others count as so large
SLOPES = 12  # solves for a slope that none removes
LEVEL = 1e-6  # beside the slope of the objective, or of a row: none
LEFT = 1e-3  # of a residual, at least: what is left after the least number of solves no solution removes


@dataclass(frozen=True)
class Settled:
    """Solutions x (B, n, 1) with multipliers y (B, M, 1), and the rows that are ``held`` at a bound.

    Rx : R x, (B, M, 1).
    K : the linear system of the conditions with these rows.
    residual : the largest number that the conditions lack, beside their terms, (B,).
    correction : what a further step would change x by, (B, n, 1).
    weak : rows that touch their bound with a multiplier of 0, (B, M, 1).
    loose : whether the solution may move freely, (B,).
    tight : whether constraints that hold it depend on each other, inequalities among them, (B,).
    ray : a direction (B, n, 1) of no curvature, along which these rows let the objective fall for ever: x is no solution; else 0.
    """

    x: Tensor
    y: Tensor
    held: Tensor
    Rx: Tensor
    K: Condensed
    residual: Tensor
    correction: Tensor
    weak: Tensor
    loose: Tensor
    tight: Tensor
    ray: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (
            self.x,
            self.y,
            self.held,
            self.Rx,
            self.residual,
            self.correction,
            self.weak,
            self.loose,
            self.tight,
            self.ray,
        )

    def of_systems(self, which: Tensor) -> Settled:
        """Some systems of the batch."""
        x, y, held, Rx, *others = (part[which] for part in self.tensors)
        return Settled(x, y, held, Rx, self.K.of_systems(which), *others)

    def put(self, which: Tensor, other: Settled) -> Settled:
        """With those of ``other`` in the places ``which``."""
        x, y, held, Rx, *others = (a.index_copy(0, which, b) for a, b in zip(self.tensors, other.tensors, strict=True))
        return Settled(x, y, held, Rx, self.K.put(which, other.K), *others)


def settle(programs: Programs, x: Tensor, y: Tensor, weak: float, changes: Tensor) -> Settled:
    """The solutions near x, with multipliers near y: Newton's method on the conditions, which are linear between changes of the set of
    rows that are held, of which each system may make so many, (B,). A weak row, which either may be, is not."""
    Rx = programs.rows.apply(x)
    return _settled(programs, x, y, Rx, _held(programs, Rx, y), weak, changes)


def _settled(
    programs: Programs, x: Tensor, y: Tensor, Rx: Tensor, held: Tensor, weak: float, changes: Tensor
) -> Settled:
    found = _solved(programs, x, y, Rx, held, weak)
    x, Rx, again = found.x, found.Rx, _next(programs, found)
    if occurs(found.ray):
        x, again = _along(programs, found, again)
        Rx = programs.rows.apply(x)
    changed = (again != found.held).flatten(1).any(-1) & (changes > 0)
    if values_hidden() or not occurs(changed):
        return found
    which = changed.nonzero().squeeze(-1)
    some, left = programs.of_systems(which), changes[which] - 1
    later = _settled(some, x[which], found.y[which], Rx[which], again[which], weak, left)
    return found.put(which, later)


def _solved(programs: Programs, x: Tensor, y: Tensor, Rx: Tensor, held: Tensor, weak: float) -> Settled:
    """The solution with given rows held. A second right-hand side, of no pattern, is solved beside it: by what its changes shrink, so
    do those of the solution, and what no solution removes of it tells whether there is one solution."""
    K = Condensed(programs.Q, programs.rows, torch.where(held, 0.0, torch.inf).to(x.dtype))
    x, y, target, side = _with_probe(programs, x, y, Rx, held)
    rest, step = K.residual(x, y, target, side), torch.full_like(x[:, :1], torch.inf)
    least, most = SOLVES
    for k in range(most):
        dx, dy = K.approximate(*rest)
        x, y = x + dx, y + dy
        rest, last, step = K.residual(x, y, target, side), step, largest(dx)
        if k == least - 1:
            shrinks = (step[..., 1:] / last[..., 1:]).clamp(max=1)
            loose, tight = _free(programs, rest, target, side)
            x, y, dx, step, target, side = (part[..., :1] for part in (x, y, dx, step, target, side))
            rest = rest[0][..., :1], rest[1][..., :1]
        if k >= least - 1 and finished(step * shrinks <= LAST * largest(x)):
            break
    Rx = programs.rows.apply(x)
    of_gradient, of_y, of_rows = _sizes(programs, x, y, Rx, weak)
    slack = (programs.upper - Rx).minimum(Rx - programs.lower)
    small = (slack.abs() <= weak * of_rows) & (y.abs() <= weak * of_y) & (programs.lower < programs.upper)
    lacking = _lacking(programs, x, y, rest[0], of_gradient)
    up, down = y.clamp(min=0) / of_y, (-y).clamp(min=0) / of_y
    above, below = (programs.upper - Rx) / of_rows, (Rx - programs.lower) / of_rows
    residual = torch.cat([lacking, up.minimum(above).abs(), down.minimum(below).abs()], -2).amax(-2).squeeze(-1)
    ray = _ray(programs, K, loose)
    residual = torch.where((ray != 0).flatten(1).any(-1), torch.inf, residual)
    return Settled(x, y, held, Rx, K, residual, shrinks * dx, small, loose, tight, ray)


def _with_probe(
    programs: Programs, x: Tensor, y: Tensor, Rx: Tensor, held: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A point x and multipliers y, and what Q x + Rᵀy and, in rows that are held, R x are to be; each with a second column, which
    begins with 0 and has no pattern."""
    side = torch.where(_at_upper(programs, Rx, y), programs.upper, programs.lower)
    pairs = (
        (x, torch.zeros_like(x)),
        (torch.where(held, y, 0), torch.zeros_like(y)),
        (-programs.q, unpatterned(programs.q.mT).mT),
        (torch.where(held, side, 0), torch.where(held, unpatterned(side.mT).mT, 0)),
    )
    x, y, target, side = (beside(*pair) for pair in pairs)
    return x, y, target, side


def _free(programs: Programs, left: tuple[Tensor, Tensor], target: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
    """Of systems (B,): whether the solution may move freely, and whether constraints that hold it depend on each other, inequalities
    among them; from what the solution of a second right-hand side leaves of it."""
    of_x, of_rows, target, side = (part[..., 1:].abs() for part in (*left, target, side))
    loose = largest(of_x) > LEFT * largest(target)
    inequality = programs.lower < programs.upper
    return loose.flatten(), ((of_rows > LEFT * largest(side)) & inequality).flatten(1).any(-1)


def _ray(programs: Programs, K: Condensed, loose: Tensor) -> Tensor:
    """Where the solution may move freely: what no solution removes of the objective's slope. It is not seen in the gradient at an x so
    far away that the terms of Qx, which cancel, hide it."""
    ray = torch.zeros_like(programs.q)
    if not occurs(loose):
        return ray
    which = loose.nonzero().squeeze(-1)
    slope, some = -programs.q[which], K.of_systems(which)
    zero = torch.zeros_like(programs.upper[which])
    left, _ = some.residual(*some.refined(slope, zero, SLOPES), slope, zero)
    return ray.index_copy(0, which, torch.where(largest(left) > LEVEL * largest(slope), left, 0))


def _along(programs: Programs, found: Settled, again: Tensor) -> tuple[Tensor, Tensor]:
    """The way along the ray, where there is one, to the first row that it meets: x, and the rows that are held there."""
    Rx, along = found.Rx, programs.rows.apply(found.ray)
    room = torch.where(along > 0, programs.upper - Rx, Rx - programs.lower).clamp(min=0)
    meets = ~found.held & (along.abs() > LEVEL * largest(found.ray))
    reach = torch.where(meets, room / along.abs(), torch.inf)
    least = reach.amin(-2, keepdim=True) if reach.shape[-2] else torch.full_like(found.ray[:, :1], torch.inf)
    beyond = (Rx > programs.upper) | (Rx < programs.lower)
    first = found.held | beyond | (meets & (reach <= least) & (reach < torch.inf))
    x = found.x + torch.where(least < torch.inf, least, 0) * found.ray
    return x, torch.where((found.ray != 0).any(-2, keepdim=True), first, again)


def _lacking(programs: Programs, x: Tensor, y: Tensor, gradient: Tensor, of_gradient: Tensor) -> Tensor:
    """What the ``gradient`` lacks, each number beside its own terms, (B, n, 1)."""
    terms = times(programs.sizes, x.abs()) + programs.q.abs() + programs.rows.sizes.transposed(y.abs())
    return gradient.abs() / terms.maximum(ROUNDED * of_gradient)


def _held(programs: Programs, Rx: Tensor, y: Tensor) -> Tensor:
    beyond = (Rx + y > programs.upper) | (Rx + y < programs.lower)
    return beyond | (programs.lower == programs.upper)


def _at_upper(programs: Programs, Rx: Tensor, y: Tensor) -> Tensor:
    """Whether a row is nearer to its upper bound than to the lower, as its multiplier sees it."""
    return (programs.upper - Rx - y) <= (Rx + y - programs.lower)


def _next(programs: Programs, found: Settled) -> Tensor:
    """Which rows are held from what has been found: one whose multiplier has the wrong sign is not, one that is violated is."""
    return _held(programs, found.Rx, found.y) & ~found.weak


def _sizes(programs: Programs, x: Tensor, y: Tensor, Rx: Tensor, weak: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of the terms of the gradient and of the multipliers, (B, 1, 1) each, and of the terms of each constraint, (B, M, 1).

    Where terms of Qx cancel, a multiplier is as small as what they leave, and known to their rounding; and a constraint is as small as
    its own end and terms, whatever else is large. Of data of single precision all is known to that of the largest."""
    ends = torch.stack([programs.lower, programs.upper])
    sizes = ends.abs()
    smallest = torch.cat([torch.where(sizes > 0, sizes, torch.inf).amin(0), torch.ones_like(x[:, :1])], -2)
    # a solution of 0 is 0 beside the ends of other constraints
    far = x.abs().amax(-2, keepdim=True).maximum(ROUNDED * smallest.amin(-2, keepdim=True))
    curved = far * programs.sizes.amax((-2, -1), keepdim=True)
    tiny = torch.finfo(x.dtype).tiny
    of_y = largest(torch.cat([programs.q, y, times(programs.Q, x)], -2)) + tiny
    of_gradient = of_y.maximum(curved)
    distance = (ends - Rx).abs()
    near = torch.where(distance[0] < distance[1], sizes[0], sizes[1])
    near = torch.where(near < torch.inf, near, 0) + tiny
    if weak > WEAK:
        return of_gradient, of_gradient, near + far
    of_rows = near + programs.rows.sizes.apply(x.abs()).maximum(ROUNDED * far)
    return of_gradient, of_y.maximum(EXACT / WEAK * curved), of_rows
