"""What the bracketing methods share: two points between which g changes its sign, and the search for them from the start."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from torchimplicit.solvers.equations import Equations, Estimate
from torchimplicit.state import Layout, describe
from torchimplicit.stopping import Status
from torchimplicit.transforms import finished, inside_functorch, level, occurs, outside_transforms

End = Tensor | float | None
Own = tuple[Tensor, ...]  # what a method remembers beside the bracket
Self = TypeVar("Self", bound="Bracketing")

FIRST_STEP = 1 / 16  # of the search, in units of 1 + |z0|
DOUBLINGS = 64  # of that step, in each direction
STEEP = 10  # times the smallest residual seen: g at both ends of a closed bracket from which it holds a pole
BEYOND = 8  # doublings of the step after a pole
NARROWER = 64  # times narrower a bracket is before g is compared at its ends,
SMALLER = 0.75  # and the part of them that is left then, at most, unless g jumps
STRAIGHT = 2  # by what factor slopes may differ where g is nearly a straight line


class Bracket(NamedTuple):
    """Where the systems stand, all (B, 1).

    a, fa : the end that was found last, and g there.
    b, fb : the other end, where g has the other sign.
    c, fc : the point that was an end before.
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
    def height(self) -> Tensor:
        """|g(b) − g(a)|."""
        return (self.fb - self.fa).abs()

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
    wider, higher : the width and the height of an earlier bracket; infinite at first, (B, 1).
    falls : whether g has become smaller with the bracket since, as it does at a root and not at a jump, (B, 1).
    own : what the method remembers.
    """

    bracket: Bracket
    found: Tensor
    search: Outward
    ahead: Ahead | None
    nothing: Tensor
    status: Tensor
    least: Tensor
    wider: Tensor
    higher: Tensor
    falls: Tensor
    own: Own


@dataclass(frozen=True)
class Bracketing(ABC):
    """The root of one equation in one unknown, between two points where g has different signs.

    lower, upper : the ends of the bracket: numbers, or tensors that broadcast to z. None, or an infinite end: sought from z0,
        in steps of (1 + |z0|)/16 that double, to both sides in turn and short of where g is NaN. A start outside is
        replaced by the middle (or by a point next to the only end).

    Every entry of z is an equation of its own (``batch_ndim=z.ndim``). A system for which no bracket is found ends with the
    status NO_BRACKET; one whose bracket has shrunk to neighbouring floats, while g has not fallen with its width, as STAGNATED: a
    jump or a pole is no root. Beyond a pole the search goes on, over some 2⁸ times the distance to it.
    """

    lower: End = None
    upper: End = None
    max_steps: ClassVar[int] = 2 * DOUBLINGS + 200
    patience: ClassVar[int] = max_steps  # the bracket shows when there is no more progress
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
        """The start, if it is between the ends; else the middle, or a point within the one end that is finite."""
        if self.lower is None and self.upper is None:
            return z
        low, high = _tiled(self.lower, z, -torch.inf), _tiled(self.upper, z, torch.inf)
        middle = low / 2 + high / 2
        within = torch.where(high.isfinite(), high - _first_step(high), low + _first_step(low))
        return torch.where((low < z) & (z < high), z, torch.where(middle.isfinite(), middle, within))

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, BracketState]:
        r = equations.residual(z)
        left, f_left, wall_left = _end(equations, self.lower, z, r, -torch.inf)
        right, f_right, wall_right = _end(equations, self.upper, z, r, torch.inf)
        below, above = _opposite(f_left, r), _opposite(f_right, r)
        b, fb = torch.where(below, left, right), torch.where(below, f_left, f_right)
        bracket = Bracket(z, r, b, fb, b, fb)
        step, rightwards = _first_step(z), torch.ones_like(z, dtype=torch.bool)
        search = Outward(left, f_left, right, f_right, wall_left, wall_right, step, step * 2.0**DOUBLINGS, rightwards)
        nothing = torch.full_like(z, Status.NO_BRACKET, dtype=torch.int64)
        infinite = torch.full_like(z, torch.inf)
        fall = (infinite, infinite, torch.zeros_like(below))
        return r, self._state(bracket, below | above, search, r.abs(), nothing, fall, self.begin(bracket))

    def step(
        self, equations: Equations, z: Tensor, r: Tensor, state: BracketState
    ) -> tuple[Tensor, Tensor, BracketState]:
        bracket, found, search, ahead, nothing, _, least, *fall, own = state
        x, own = self.propose(bracket, own)
        inside = ((bracket.a < x) & (x < bracket.b)) | ((bracket.b < x) & (x < bracket.a))
        x = torch.where(inside, x, bracket.middle)
        if ahead is None:
            f = equations.residual(x)
            bracket = bracket.shrunk(x, f)
        else:
            to_right = ahead.to_right
            x = torch.where(found, x, ahead.x)
            f = equations.residual(x)
            end = torch.where(to_right, search.right, search.left)
            f_end = torch.where(to_right, search.f_right, search.f_left)
            hit = ~found & _opposite(f, f_end)
            new = Bracket(x, f, end, f_end, end, f_end)
            bracket = bracket.shrunk(x, f).where(found, new)
            own = tuple(torch.where(found, *pair) for pair in zip(own, self.begin(new), strict=True))
            found, search = found | hit, search.after(x, f, to_right, ~found)
        end, f_end = bracket.nearer
        closer = f.abs() < r.abs()
        z = torch.where(found, end, torch.where(closer, x, z))
        r = torch.where(found, f_end, torch.where(closer, f, r))
        r = torch.where(found & f.isnan(), f, r)  # within a bracket there is no side to turn to
        return z, r, self._state(bracket, found, search, least.fmin(f.abs()), nothing, tuple(fall), own)

    def estimate(self, z: Tensor, r: Tensor, state: BracketState) -> Estimate:
        """How far away the root can be: as far as the other end, if g falls with the width of the bracket, as it does not at a jump;
        and where g is nearly a straight line no farther than that line's root."""
        bracket = state.bracket
        farthest = torch.maximum((z - bracket.a).abs(), (z - bracket.b).abs())
        slope, before = bracket.height / bracket.width, ((bracket.fa - bracket.fc) / (bracket.a - bracket.c)).abs()
        straight = (slope <= STRAIGHT * before) & (before <= STRAIGHT * slope) & (bracket.c != bracket.b)
        straight = straight & slope.isfinite() & (r.abs() <= state.least)  # towards a pole g grows
        error = torch.where(state.falls, farthest, torch.inf)
        error = torch.where(straight, error.minimum(r.abs() / slope.minimum(before)), error)
        error = torch.where(state.found, error, torch.inf)
        return Estimate(torch.where(r == 0, 0, error), torch.zeros_like(z.squeeze(-1)))

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
        fall: tuple[Tensor, ...],
        own: Own,
    ) -> BracketState:
        """The state, with what is over: brackets that have closed, searches that have seen everything."""
        wider, higher, falls = fall
        narrower = found & (bracket.width <= wider / NARROWER)
        lower = (bracket.height <= SMALLER * higher) & (wider < torch.inf) & (higher < torch.inf)
        falls = torch.where(narrower, lower, falls & found)
        wider, higher = torch.where(narrower, bracket.width, wider), torch.where(narrower, bracket.height, higher)
        closed = found & (torch.nextafter(bracket.a, bracket.b) == bracket.b)
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
        return BracketState(bracket, found, search, ahead, nothing, status, least, wider, higher, falls, own)


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


def _first_step(z: Tensor) -> Tensor:
    return (1 + z.abs()) * FIRST_STEP


def _tiled(end: Any, z: Tensor, infinite: float) -> Tensor:
    """An end like z; the samples of a vmap share one."""
    return torch.full_like(z, infinite) if end is None else end.repeat(len(z) // max(1, len(end)), 1)


def _end(equations: Equations, end: Any, z: Tensor, r: Tensor, infinite: float) -> tuple[Tensor, Tensor, Tensor]:
    """An end as far as it is known, g there, and how far it may be moved."""
    wall = _tiled(end, z, infinite)
    if end is None:
        return z, r, wall
    given = wall.isfinite()
    f = equations.residual(torch.where(given, wall, z))
    known = given & ~f.isnan()
    if occurs(nan := (given & f.isnan()).squeeze(-1)) and not inside_functorch():
        equations.remark = (
            f"At the end {float(wall[nan][0]):.6g} that was given for a bracket, g is NaN: it was left out."
        )
    return torch.where(known, wall, z), torch.where(known, f, r), torch.where(given, wall, infinite)


def _opposite(f: Tensor, g: Tensor) -> Tensor:
    return ((f < 0) & (g > 0)) | ((f > 0) & (g < 0))
