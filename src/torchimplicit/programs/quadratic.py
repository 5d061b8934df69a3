"""A batch of quadratic programs as they are solved: scaled, with all constraints as rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished, occurs
from torchimplicit.programs.rows import Rows

SWEEPS = 3  # of the scaling, at most: more change little
EVEN = 8  # rows and columns whose largest entries lie between 1 / EVEN and EVEN: a sweep leaves them between 1 / EVEN and 1
FAR = 1e15  # beside unknowns of about 1: what lies beyond is no constraint, for they are lost to rounding beside it


@dataclass(frozen=True)
class Programs:
    """Minimise ½ xᵀQx + qᵀx over lower ≤ R x ≤ upper, B times: Q (B, n, n), q (B, n, 1), lower and upper (B, M, 1).

    Their multipliers y have Qx + q + Rᵀy = 0, with y ≥ 0 where R x = upper, y ≤ 0 where R x = lower, and y = 0 between.
    """

    Q: Tensor
    q: Tensor
    rows: Rows
    lower: Tensor
    upper: Tensor

    @cached_property
    def sizes(self) -> Tensor:
        """Those of the entries of Q."""
        return self.Q.abs()

    def of_systems(self, which: Tensor) -> Programs:
        """Some systems of the batch."""
        rows = self.rows.of_systems(which)
        return Programs(self.Q[which], self.q[which], rows, self.lower[which], self.upper[which])

    def one_sided(self, bounds: int) -> OneSided:
        """The same, in which the last ``bounds`` rows may have both sides, the others an upper side or equality."""
        equal = self.lower == self.upper
        first = self.upper.shape[-2] - bounds
        t, C = self.upper[:, :first], self.rows.C
        absent = t == torch.inf
        if occurs(absent):
            C, t = torch.where(absent, 0, C), torch.where(absent, 1, t)
        if not bounds:
            return OneSided(self.Q, self.q, self.rows if C is self.rows.C else Rows(C), t, equal)
        lower, upper, fixed = self.lower[:, first:], self.upper[:, first:], equal[:, first:]
        above, below = upper < torch.inf, (lower > -torch.inf) & ~fixed
        blocks = above.to(t.dtype), -below.to(t.dtype)
        t = torch.cat([t, torch.where(above, upper, 1), torch.where(below, -lower, 1)], -2)
        return OneSided(self.Q, self.q, Rows(C, blocks), t, torch.cat([equal, torch.zeros_like(fixed)], -2))


@dataclass(frozen=True)
class OneSided:
    """Minimise ½ xᵀQx + qᵀx over R x ≤ t, with equality in the rows that are ``equal``; t (B, M, 1).

    A row without a constraint, R x ≤ ∞, is 0ᵀx ≤ 1 here.
    """

    Q: Tensor
    q: Tensor
    rows: Rows
    t: Tensor
    equal: Tensor

    @cached_property
    def either(self) -> tuple[Tensor, Tensor, Tensor]:
        """In inequalities 1, 0 and 0; in equalities 0, 1 and infinite: arithmetic with them takes a tenth of what a choice does."""
        equal = self.equal.to(self.q.dtype)
        return 1 - equal, equal, torch.where(self.equal, torch.inf, 0.0).to(self.q.dtype)

    def to(self, dtype: torch.dtype) -> OneSided:
        """The same numbers in another precision."""
        return OneSided(self.Q.to(dtype), self.q.to(dtype), self.rows.to(dtype), self.t.to(dtype), self.equal)

    def of_systems(self, which: Tensor) -> OneSided:
        """Some systems of the batch."""
        rows = self.rows.of_systems(which)
        return OneSided(self.Q[which], self.q[which], rows, self.t[which], self.equal[which])

    @staticmethod
    def signed(y: Tensor, bounds: int) -> Tensor:
        """The multipliers of the two-sided rows, of those of the upper and the lower sides."""
        if not bounds:
            return y
        first, upper, lower = y.split([y.shape[-2] - 2 * bounds, bounds, bounds], -2)
        return torch.cat([first, upper - lower], -2)


@dataclass(frozen=True)
class Data:
    """The data of B programs as they were posed, on one dtype: Q (B, n, n), p (B, n), G (B, m, n), h (B, m), A (B, k, n), b (B, k), and
    where there are bounds lower and upper (B, n)."""

    Q: Tensor
    p: Tensor
    G: Tensor
    h: Tensor
    A: Tensor
    b: Tensor
    lower: Tensor | None
    upper: Tensor | None

    def of_systems(self, which: slice) -> Data:
        """Some systems of the batch."""
        bounds = (None if part is None else part[which] for part in (self.lower, self.upper))
        matrices = (self.Q, self.p, self.G, self.h, self.A, self.b)
        return Data(*(part[which] for part in matrices), *bounds)

    @property
    def bounded(self) -> bool:
        return self.lower is not None

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """The numbers of unknowns z, and of multipliers of inequalities, of equalities and of bounds."""
        n = self.Q.shape[-1]
        return n, self.h.shape[-1], self.b.shape[-1], n if self.bounded else 0


@dataclass(frozen=True)
class Units:
    """What the numbers of a program are times, to be those of the data: unknowns z (B, n, 1), multipliers y (B, M, 1); and what
    gradients r (B, n, 1) and constraints t (B, M, 1) of the data are times, to be those of the program."""

    z: Tensor
    y: Tensor
    r: Tensor
    t: Tensor


def scaled(data: Data) -> tuple[Programs, Units]:
    """The programs in units in which their numbers are about 1.

    The largest entry in every row and column of [Q Cᵀ; C 0] is brought to about 1, the unknowns to about the size that they have
    to have, and the objective to 1.
    Sources: Ruiz, A scaling algorithm to equilibrate both rows and columns norms in matrices, RAL-TR-2001-034 (2001); of the
    objective Stellato et al., OSQP, Math. Prog. Comp. 12 (2020), section 5.1.
    """
    C, p = torch.cat([data.G, data.A], -2), data.p.unsqueeze(-1)
    d, e = _equilibrated(data.Q.abs(), C.abs())
    upper = [e * torch.cat([data.h, data.b], -1).unsqueeze(-1)]
    lower = [e * torch.cat([torch.full_like(data.h, -torch.inf), data.b], -1).unsqueeze(-1)]
    if data.lower is not None and data.upper is not None:
        lower.append(data.lower.unsqueeze(-1) / d)
        upper.append(data.upper.unsqueeze(-1) / d)
    low, up = torch.cat(lower, -2), torch.cat(upper, -2)
    Q, p = (data.Q + data.Q.mT).mul_(d / 2).mul_(d.mT), d * p
    size_Q, size_p = _largest_entry(Q), _largest_entry(p)
    size = _size(low, up, size_p / size_Q)
    c = 1 / _usable((size * size * size_Q).maximum(size * size_p))
    rows = Rows(C.mul_(e).mul_(d.mT), tuple(torch.ones_like(d) for _ in upper[1:]))
    t = (torch.cat([e, 1 / d], -2) if data.bounded else e) / size
    units = Units(d * size, t / c, c * size * d, t)
    low, up = low / size, up / size
    low, up = torch.where(low < -FAR, -torch.inf, low), torch.where(up > FAR, torch.inf, up)
    return Programs(Q.mul_(c * size * size), c * size * p, rows, low, up), units


def _largest_entry(t: Tensor) -> Tensor:
    """The size of the largest entry of each matrix or vector, (B, 1, 1)."""
    smallest, largest = t.amin(-1, keepdim=True), t.amax(-1, keepdim=True)
    return largest.maximum(-smallest).amax(-2, keepdim=True)


def _equilibrated(Q: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """d (B, n, 1) and e (B, k, 1) that bring the largest entry in the rows and columns of [dQd dCᵀe; eCd 0] to about 1."""
    d, e = Q.new_ones(*Q.shape[:-1], 1), C.new_ones(*C.shape[:-1], 1)
    even = torch.zeros_like(d[:, :1], dtype=torch.bool)  # each system stops by itself
    for sweep in range(SWEEPS):
        of_Q, of_C, of_rows = (Q, C, C) if sweep == 0 else (Q * d.mT, C * e, C * d.mT)
        column, row = of_Q.amax(-1, keepdim=True), torch.ones_like(e)
        if C.shape[-2]:
            column = column.maximum(of_C.amax(-2).unsqueeze(-1))
            row = _usable(e * of_rows.amax(-1, keepdim=True))
        column = _usable(d * column)
        d, e = torch.where(even, d, d * column.rsqrt()), torch.where(even, e, e * row.rsqrt())
        even = even | (_even(column) & _even(row))
        if finished(even):
            break
    return d, e


def _even(sizes: Tensor) -> Tensor:
    """Systems, (B, 1, 1), whose sizes (B, k, 1) are all about 1."""
    return ((sizes <= EVEN) & (sizes >= 1 / EVEN)).all(-2, keepdim=True)


def _size(lower: Tensor, upper: Tensor, free: Tensor) -> Tensor:
    """About what the unknowns are: at least what the constraints ask for, at most what they allow, else what they are ``free``."""
    ends = torch.cat([lower, -upper, free], -2)
    least = torch.where(ends[:, :-1] < torch.inf, ends[:, :-1], 0).clamp(min=0)
    most = torch.where(ends.isfinite(), ends, 0).abs()[:, :-1]
    least, most = (torch.cat([t, torch.zeros_like(free)], -2).amax(-2, keepdim=True) for t in (least, most))
    free = torch.where(free.isnan(), 0, free).minimum(torch.where(most > 0, most, torch.inf))
    return _usable(least.maximum(torch.where(free < torch.inf, free, 0)))


def _usable(size: Tensor) -> Tensor:
    """1 where there is nothing to scale."""
    return torch.where((size > 0) & (size < torch.inf), size, 1)
