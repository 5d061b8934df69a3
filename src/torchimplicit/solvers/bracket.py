"""What the bracketing methods share: two points between which g changes its sign, and the search for them from the start."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished, inside_functorch, occurs, outside_transforms
from torchimplicit.layout import Layout, describe
from torchimplicit.private.functorch import level
from torchimplicit.solvers.equations import Equations, Estimate
from torchimplicit.solvers.method import Method
from torchimplicit.status import Status

End = Tensor | float | None
Own = tuple[Tensor, ...]  # what a method remembers beside the bracket
Self = TypeVar("Self", bound="Bracketing")

FIRST_STEP = 1 / 16  # of the search, in units of 1 + |z0|
CLOSE = 0.5  # how near to the start, in default tolerances, g is looked at to see which way it falls
PAST = 1.25  # times the way to where its tangent vanishes: the first point of the search, if it is nearer than the first step
DOUBLINGS = 64  # of that step, in each direction
STEEP = 10  # times the smallest residual seen: g at both ends of a closed bracket from which it holds a pole
BEYOND = 8  # doublings of the step after a pole
STEEPER = 16  # times steeper than beside it g may be in a bracket; more is a jump


class Bracket(NamedTuple):
    """Where the systems stand, all (B, 1).

    a, fa : one end, that found last if g has been seen within, and g there.
    b, fb : the other end, where g has the other sign.
    c, fc : a point beyond a, where g has its sign; a itself if none is known.
    """

    a: Tensor
    fa: Tensor
    b: Tensor
    fb: Tensor
    c: Tensor
    fc: Tensor

    @property
    def width(self) -> Tensor:
        """|b − a|."""
        return (self.b - self.a).abs()

    @property
    def even(self) -> Tensor:
        """Whether g changes within as it does beside, from a to c: not so at a jump, nor at a pole, where it turns."""
        steeper = (self.fb - self.fa) / (self.fa - self.fc) * ((self.a - self.c) / (self.b - self.a))
        return (0 < steeper) & (steeper <= STEEPER)

    @property
    def nearer(self) -> tuple[Tensor, Tensor]:
        """The end where g is smaller, and g there."""
        first = self.fa.abs() <= self.fb.abs()
        return torch.where(first, self.a, self.b), torch.where(first, self.fa, self.fb)

    @property
    def middle(self) -> Tensor:
        """(a + b) / 2, which does not overflow."""
        return self.a / 2 + self.b / 2

    def shrunk(self, x: Tensor, f: Tensor) -> Bracket:
        """The part of it that has x, where g is f, as an end."""
        same = (f < 0) == (self.fa < 0)
        c, fc = torch.where(same, self.a, self.b), torch.where(same, self.fa, self.fb)
        b, fb = torch.where(same, self.b, self.a), torch.where(same, self.fb, self.fa)
        return Bracket(x, f, b, fb, c, fc)

    def where(self, rows: Tensor, other: Bracket) -> Bracket:
        """This one in some rows, ``other`` in the rest."""
        return Bracket(*(torch.where(rows, ours, theirs) for ours, theirs in zip(self, other, strict=True)))


class Ahead(NamedTuple):
    """Where a search looks next, (B, 1) each: the point, whether it lies to the right, and whether there is any."""

    x: Tensor
    to_right: Tensor
    any: Tensor


class Outward(NamedTuple):
    """A search from the start to both sides, in steps that double, one side at a time.

    left, right : the interval seen so far; g has one sign at all of its points. f_left, f_right : g there.
    wall_left, wall_right : where g is NaN, or an end that was given: nothing is sought beyond.
    step : the length of the next steps, (B, 1), up to the longest. rightwards : whether it is the right side's turn.
    """

    left: Tensor
    f_left: Tensor
    right: Tensor
    f_right: Tensor
    wall_left: Tensor
    wall_right: Tensor
    step: Tensor
    longest: Tensor
    rightwards: Tensor

    def next(self) -> Ahead:
        """The next point."""
        largest = torch.finfo(self.step.dtype).max
        left, right = (self.left - self.step).clamp(min=-largest), (self.right + self.step).clamp(max=largest)
        left = torch.where(left > self.wall_left, left, self.left / 2 + self.wall_left / 2)
        right = torch.where(right < self.wall_right, right, self.right / 2 + self.wall_right / 2)
        room_left = (self.wall_left < left) & (left < self.left)
        room_right = (self.right < right) & (right < self.wall_right)
        to_right = room_right & (self.rightwards | ~room_left)
        x = torch.where(to_right, right, left)
        # An end that was given may be the root: it becomes the next iterate.
        x = torch.where(self.f_left == 0, self.left, torch.where(self.f_right == 0, self.right, x))
        return Ahead(x, to_right, (room_left | room_right) & (self.step < self.longest))

    def crossed(self, x: Tensor, f: Tensor, to_right: Tensor) -> tuple[Tensor, Bracket]:
        """Whether g, f at the next point x, has another sign there, and the bracket of which x then is an end."""
        near, f_near = torch.where(to_right, self.right, self.left), torch.where(to_right, self.f_right, self.f_left)
        far, f_far = torch.where(to_right, self.left, self.right), torch.where(to_right, self.f_left, self.f_right)
        return _opposite(f, f_near), Bracket(near, f_near, x, f, far, f_far)

    def after(self, x: Tensor, f: Tensor, to_right: Tensor, sought: Tensor) -> Outward:
        """The search goes on beyond x, or short of it where g is NaN, in the systems that are sought."""
        nan = f.isnan()
        to_left, to_right = sought & ~to_right, sought & to_right
        left, right = to_left & ~nan, to_right & ~nan
        return Outward(
            torch.where(left, x, self.left),
            torch.where(left, f, self.f_left),
            torch.where(right, x, self.right),
            torch.where(right, f, self.f_right),
            torch.where(to_left & nan, x, self.wall_left),
            torch.where(to_right & nan, x, self.wall_right),
            torch.where(sought & ~self.rightwards, self.step * 2, self.step),
            self.longest,
            self.rightwards ^ sought,
        )


class BracketState(NamedTuple):
    """What the next step needs.

    bracket : of the systems that have one. found : which those are, (B, 1).
    search : of the others, and where it goes on after a pole. ahead : its next points; None where all have a bracket.
    nothing : the status where the search ends without success, (B, 1): NO_BRACKET, after a pole STAGNATED.
    status : of those that have come to an end, RUNNING of the others, (B, 1).
    least : the smallest |g| that was seen, (B, 1).
    even : whether g changes within the bracket as beside it, (B, 1); in a narrow one rounding may not show it, if it did before.
    own : what the method remembers.
    """

    bracket: Bracket
    found: Tensor
    search: Outward
    ahead: Ahead | None
    nothing: Tensor
    status: Tensor
    least: Tensor
    even: Tensor
    own: Own


@dataclass(frozen=True)
class Bracketing(Method, ABC):
    """The root of one equation in one unknown, between two points where g has different signs.

    lower, upper : the ends of the bracket: numbers, or tensors that broadcast to z. Between two ends the middle is the start,
        whatever z0 is. None, or an infinite end: sought from z0, in steps of (1 + |z0|)/16 that double, to both sides in turn,
        first to where |g| falls, and short of where g is NaN; a root of the tangent at z0 shortens the first step. A start beyond
        the only end is replaced by a point next to it.

    The estimated error is the width of the bracket. Every entry of z is an equation of its own (``batch_ndim=z.ndim``). A system
    for which no bracket is found ends with the status NO_BRACKET; one whose bracket has shrunk to neighbouring floats, while g was
    much steeper within than beside it, as STAGNATED: a jump or a pole is no root. Beyond a pole the search goes on, over some 2⁸
    times the distance to it.
    """

    lower: End = None
    upper: End = None
    max_steps: ClassVar[int] = 2 * DOUBLINGS + 200
    patience: ClassVar[int] = max_steps  # the bracket shows when there is no more progress
    in_graph: ClassVar[bool] = True
    unrolls: ClassVar[bool] = False
    rowwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, end in (("lower", self.lower), ("upper", self.upper)):
            number = isinstance(end, (int, float)) and not isinstance(end, bool)
            if not (end is None or number or (isinstance(end, Tensor) and end.is_floating_point())):
                raise TypeError(
                    f"{type(self).__name__}: {name} must be a number, a floating tensor or None; got {describe(end)}."
                )

    @abstractmethod
    def propose(self, bracket: Bracket, own: Own) -> tuple[Tensor, Own]:
        """The next point, (B, 1), and what is remembered. A point that is not between the ends is replaced by the middle."""

    def begin(self, bracket: Bracket) -> Own:
        """What is remembered of a new bracket."""
        return ()

    def fitted(self: Self, layout: Layout) -> Self:
        """The method with its ends as (B, 1).

        Raises ValueError or TypeError unless there is one unknown and the ends fit.
        """
        name = type(self).__name__
        if layout.size != 1:
            raise ValueError(
                f"{name} finds the root of one equation in one unknown; a system here has {layout.size}. If every entry of z "
                f"has an equation of its own, set batch_ndim=z.ndim."
            )
        lower, upper = (
            None if end is None else _rows(end, layout, f"{name}: {which}")
            for which, end in (("lower", self.lower), ("upper", self.upper))
        )
        if lower is not None and upper is not None and not bool((lower <= upper).all()):
            raise ValueError(f"{name}: lower must not exceed upper.")
        return replace(self, lower=lower, upper=upper)

    def of_rows(self: Self, rows: slice | Tensor) -> Self:
        """The method for some systems of the batch."""
        lower, upper = (end[rows] if isinstance(end, Tensor) else end for end in (self.lower, self.upper))
        return replace(self, lower=lower, upper=upper)

    def starting_point(self, z: Tensor) -> Tensor:
        """The middle of two ends; the start, if there is one end at most and it is within; else a point next to that end."""
        if self.lower is None and self.upper is None:
            return z
        low, high = _tiled(self.lower, z, -torch.inf), _tiled(self.upper, z, torch.inf)
        middle = low / 2 + high / 2
        within = torch.where(high.isfinite(), high - _first_step(high), low + _first_step(low))
        return torch.where(middle.isfinite(), middle, torch.where((low < z) & (z < high), z, within))

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, BracketState]:
        r = _value(equations, z)
        left, f_left, wall_left = _end(equations, self.lower, z, r, -torch.inf)
        right, f_right, wall_right = _end(equations, self.upper, z, r, torch.inf)
        below, above = _opposite(f_left, r), _opposite(f_right, r)
        b, fb = torch.where(below, left, right), torch.where(below, f_left, f_right)
        c, fc = torch.where(below & ~above, right, z), torch.where(below & ~above, f_right, r)
        c, fc = torch.where(above & ~below, left, c), torch.where(above & ~below, f_left, fc)
        bracket, found = Bracket(z, r, b, fb, c, fc), below | above
        step, rightwards = _first_step(z), torch.ones_like(z, dtype=torch.bool)
        search = Outward(left, f_left, right, f_right, wall_left, wall_right, step, step * 2.0**DOUBLINGS, rightwards)
        nothing = torch.full_like(z, Status.NO_BRACKET, dtype=torch.int64)
        state = self._state(bracket, found, search, r.abs(), nothing, torch.zeros_like(found), self.begin(bracket))
        return r, state if state.ahead is None else self._towards(equations, z, r, state)

    def _towards(self, equations: Equations, z: Tensor, r: Tensor, state: BracketState) -> BracketState:
        """The same, where a search begins: first where |g| falls, past where the tangent of g vanishes, if that is near."""
        bracket, found, search, _, nothing, _, least, even, own = state
        eps = torch.finfo(z.dtype).eps
        close = CLOSE * torch.where(z == 0, eps**0.5, eps**0.5 * z.abs() + eps)  # of 0 the tolerance tells no size
        x, to_right, any_ = search._replace(step=close).next()
        f = equations.attempt(_value, equations, x)
        if f is None:
            return state
        hit, new = search.crossed(x, f, to_right)
        sought, hit = ~found & any_, ~found & any_ & hit
        way = r / (r - f) * (x - z)
        # A start that is the root to a tolerance has its bracket in one step.
        length = (PAST * way.abs()).maximum(1.5 * close).minimum(search.step)
        length = torch.where(length.isnan(), search.step, length)
        bracket, found = new.where(hit, bracket), found | hit
        own = tuple(torch.where(hit, *pair) for pair in zip(self.begin(new), own, strict=True))
        search = search.after(x, f, to_right, sought)._replace(step=search.step, rightwards=~(way < 0))
        state = self._state(bracket, found, search, least.fmin(f.abs()), nothing, even, own)
        return state._replace(ahead=search._replace(step=length).next())

    def step(
        self, equations: Equations, z: Tensor, r: Tensor, state: BracketState
    ) -> tuple[Tensor, Tensor, BracketState]:
        bracket, found, search, ahead, nothing, _, least, even, own = state
        x, own = self.propose(bracket, own)
        inside = ((bracket.a < x) & (x < bracket.b)) | ((bracket.b < x) & (x < bracket.a))
        x = torch.where(inside, x, bracket.middle)
        if ahead is None:
            f = _value(equations, x)
            bracket = bracket.shrunk(x, f)
        else:
            x = torch.where(found, x, ahead.x)
            f = _value(equations, x)
            hit, new = search.crossed(x, f, ahead.to_right)
            bracket = bracket.shrunk(x, f).where(found, new)
            own = tuple(torch.where(found, *pair) for pair in zip(own, self.begin(new), strict=True))
            found, search = found | hit, search.after(x, f, ahead.to_right, ~found)
        end, f_end = bracket.nearer
        closer = f.abs() < r.abs()
        z = torch.where(found, end, torch.where(closer, x, z))
        r = torch.where(found, f_end, torch.where(closer, f, r))
        r = torch.where(found & f.isnan(), f, r)  # within a bracket there is no side to turn to
        return z, r, self._state(bracket, found, search, least.fmin(f.abs()), nothing, even, own)

    def estimate(self, z: Tensor, r: Tensor, state: BracketState) -> Estimate:
        """How far away the root can be: as far as the other end, unless g jumps between the two."""
        farthest = torch.maximum((z - state.bracket.a).abs(), (z - state.bracket.b).abs())
        error = torch.where(state.found & state.even, farthest, torch.inf)
        return Estimate(torch.where(r == 0, 0, error), 0.0, complete=True)

    def verdict(self, state: BracketState) -> Tensor:
        """The status of the systems that have come to an end, (B,); RUNNING for the others."""
        return state.status.squeeze(-1)

    def _state(
        self,
        bracket: Bracket,
        found: Tensor,
        search: Outward,
        least: Tensor,
        nothing: Tensor,
        even: Tensor,
        own: Own,
    ) -> BracketState:
        """The state, with what is over: brackets that have closed, searches that have seen everything."""
        eps = torch.finfo(least.dtype).eps
        narrow = bracket.width <= eps**0.5 * bracket.a.abs().maximum(bracket.b.abs())
        even = bracket.even | (even & narrow)
        closed = torch.nextafter(bracket.a, bracket.b) == bracket.b
        # Next to 0 there are always more floats.
        closed = found & (closed | (~even & (bracket.width <= eps**2 * search.right - eps**2 * search.left)))
        status = torch.where(closed, Status.STAGNATED, Status.RUNNING)
        if occurs(closed):
            steep = STEEP * least
            pole = closed & (bracket.fa.abs() > steep) & (bracket.fb.abs() > steep)
            if occurs(pole):  # the search goes on beyond it, where g has the other sign
                found, status = found & ~pole, torch.where(pole, Status.RUNNING, status)
                nothing = torch.where(pole, Status.STAGNATED, nothing)
                further = search.longest.minimum(search.step * 2.0**BEYOND)
                search = search._replace(longest=torch.where(pole, further, search.longest))
        ahead = None
        if not finished(found):
            ahead = search.next()
            known = (search.f_left == 0) | (search.f_right == 0)
            status = torch.where(found | known | ahead.any, status, nothing)
        return BracketState(bracket, found, search, ahead, nothing, status, least, even, own)


def _rows(end: Tensor | float, layout: Layout, name: str) -> Tensor:
    """An end that was given, for each system."""
    if isinstance(end, Tensor) and level(end) >= 0:
        raise TypeError(
            f"{name} is a tensor of a torch.func transform, in which each sample has a bracket of its own. Solve the samples as "
            f"one batch with batch_ndim instead, or leave the end None."
        )
    shape = layout.batch_shape
    try:
        with outside_transforms():
            found = torch.as_tensor(end, dtype=layout.real_dtype, device=layout.device).detach().expand(shape)
    except RuntimeError:
        raise ValueError(f"{name} must broadcast to z, of shape {tuple(shape)}; got a {describe(end)}.") from None
    return found.reshape(-1, 1)


def _value(equations: Equations, x: Tensor) -> Tensor:
    """g at x; the largest number where it is infinite, which has a sign too."""
    f, largest = equations.residual(x), torch.finfo(x.dtype).max
    return f.clamp(-largest, largest)


def _first_step(z: Tensor) -> Tensor:
    return (1 + z.abs()) * FIRST_STEP


def _tiled(end: Any, z: Tensor, infinite: float) -> Tensor:
    """An end like z; the samples of a vmap share one."""
    return torch.full_like(z, infinite) if end is None else end.repeat(z.shape[0] // max(1, end.shape[0]), 1)


def _end(equations: Equations, end: Any, z: Tensor, r: Tensor, infinite: float) -> tuple[Tensor, Tensor, Tensor]:
    """An end as far as it is known, g there, and how far it may be moved."""
    wall = _tiled(end, z, infinite)
    if end is None:
        return z, r, wall
    given = wall.isfinite()
    f = _value(equations, torch.where(given, wall, z))
    known = given & ~f.isnan()
    if occurs(nan := (given & f.isnan()).squeeze(-1)) and not inside_functorch():
        equations.remark = (
            f"At the end {float(wall[nan][0]):.6g} that was given for a bracket, g is NaN: it was left out."
        )
    return torch.where(known, wall, z), torch.where(known, f, r), torch.where(given, wall, infinite)


def _opposite(f: Tensor, g: Tensor) -> Tensor:
    return ((f < 0) & (g > 0)) | ((f > 0) & (g < 0))
