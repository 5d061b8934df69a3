"""Block tridiagonal systems solved by eliminating every other block of unknowns at a time: log₂ N steps, each for all at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchimplicit.linear.dense import Dense
from torchimplicit.linear.estimated import Estimated
from torchimplicit.linear.factors import Factors
from torchimplicit.linear.lu import LU
from torchimplicit.linear.vectors import fit
from torchimplicit.norms import inverse_power_of_two


class _Level(NamedTuple):
    """The odd blocks that are eliminated: their factors, what couples them to the even ones before and after them, D⁻¹ of that, and
    what couples the even ones to the odd ones before and after them."""

    odd: Factors
    before: Tensor
    after: Tensor
    of_before: Tensor
    of_after: Tensor
    even_before: Tensor
    even_after: Tensor


class BlockElimination(Estimated):
    """Block cyclic reduction of N blocks of p unknowns, for matrices on the diagonal, (*batch, N, p, p), and
    N − 1 of them below and above.

    The work is that of elimination from one end to the other,
    some seven times, but all blocks of a step are worked on at once; with nothing above the diagonal it is the parallel scan of a
    recurrence. Pivots are chosen within blocks only: it is stable for matrices that are definite, diagonally dominant or block
    triangular, and one that it does not solve may be regular.
    Source: Golub and Van Loan, Matrix Computations (2013), section 4.5.4; Heller, SIAM J. Numer. Anal. 13 (1976) 484-496.

    n : the number of unknowns, where the last block is filled up.
    """

    title, final = "block elimination", False

    def __init__(self, below: Tensor, diagonal: Tensor, above: Tensor, n: int | None = None) -> None:
        *batch, self.N, self.p, _ = diagonal.shape
        self.batch_shape = torch.Size(batch)
        self.n = self.N * self.p if n is None else n
        below, above = _between(below, 1, 0), _between(above, 0, 1)
        blocks = [block.detach() for block in (below, diagonal, above)]
        super().__init__(diagonal.dtype, lambda: self._size_of(*blocks))
        self.levels: list[_Level] = []
        while diagonal.shape[-3] > 1:
            below, diagonal, above = self._eliminated(below, diagonal, above)
        self.last = LU().factorize(Dense(diagonal))

    def _size_of(self, *blocks: Tensor) -> tuple[Tensor, Tensor]:
        below, diagonal, above = (block.abs() for block in blocks)
        d = inverse_power_of_two(torch.stack([block.amax(-1) for block in (below, diagonal, above)]).amax(0))
        below, diagonal, above = (d.unsqueeze(-1) * block for block in (below, diagonal, above))
        columns = (_between(below[..., 1:, :, :], 0, 1), diagonal, _between(above[..., :-1, :, :], 1, 0))
        c = inverse_power_of_two(torch.stack([block.amax(-2) for block in columns]).amax(0))
        return d.flatten(-2)[..., : self.n], c.flatten(-2)[..., : self.n]

    def _eliminated(self, below: Tensor, diagonal: Tensor, above: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The block tridiagonal matrix of the even blocks; what was done with the odd ones is kept."""
        N = diagonal.shape[-3]
        odd = LU().factorize(Dense(diagonal[..., 1::2, :, :]))
        before, after = below[..., 1::2, :, :], above[..., 1::2, :, :]
        of_before, of_after = (odd.solve(block.movedim(-1, 0)).movedim(0, -1) for block in (before, after))
        even_before, even_after = below[..., 2::2, :, :], above[..., : N - 1 : 2, :, :]
        self.levels.append(_Level(odd, before, after, of_before, of_after, even_before, even_after))
        later = even_before.shape[-3]  # of the even blocks all but the first have an odd one before them,
        more = N % 2  # and if there is one more of them, the last has none after it
        diagonal = diagonal[..., ::2, :, :] - _between(_times(even_after, of_before), 0, more)
        diagonal = diagonal - _between(_times(even_before, of_after[..., :later, :, :]), 1, 0)
        below = -_between(_times(even_before, of_before[..., :later, :, :]), 1, 0)
        return below, diagonal, -_between(_times(even_after, of_after), 0, more)

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """x with A x = b, or Aᴴ x = b: (*lead, *batch_shape, n)."""
        b = fit(b, self.batch_shape, self.n, self.dtype, name="b")
        x = pad(b, (0, self.N * self.p - self.n)).unflatten(-1, (self.N, self.p))
        odds = []
        for level in self.levels:
            odd, more, later = level.odd.solve(x[..., 1::2, :], adjoint), x.shape[-2] % 2, level.even_before.shape[-3]
            to_before, to_after = (
                (level.before.mH, level.after.mH) if adjoint else (level.even_after, level.even_before)
            )
            x = x[..., ::2, :] - _next(_applied(to_before, odd), 0, more)
            x = x - _next(_applied(to_after[..., :later, :, :], odd[..., :later, :]), 1, 0)
            odds.append(odd)
        x = self.last.solve(x, adjoint)
        for level, odd in zip(reversed(self.levels), reversed(odds), strict=True):
            size, later = odd.shape[-2], level.even_before.shape[-3]
            of_before, of_after = level.of_before, level.of_after
            if adjoint:
                of_before, of_after = level.even_after.mH, level.even_before.mH
            known = _applied(of_before, x[..., :size, :])
            known = known + _next(_applied(of_after[..., :later, :, :], x[..., 1 : later + 1, :]), 0, size - later)
            odd = odd - (level.odd.solve(known, adjoint) if adjoint else known)
            pairs = torch.stack([x[..., :size, :], odd], -2).flatten(-3, -2)
            x = torch.cat([pairs, x[..., size:, :]], -2)
        return x.flatten(-2)[..., : self.n]


def _times(A: Tensor, B: Tensor) -> Tensor:
    return A * B if A.shape[-1] == 1 else A @ B


def _applied(A: Tensor, x: Tensor) -> Tensor:
    return A.squeeze(-1) * x if A.shape[-1] == 1 else (A @ x.unsqueeze(-1)).squeeze(-1)


def _between(blocks: Tensor, before: int, after: int) -> Tensor:
    """So many zero blocks before and after the others."""
    return pad(blocks, (0, 0, 0, 0, before, after))


def _next(vectors: Tensor, before: int, after: int) -> Tensor:
    return pad(vectors, (0, 0, before, after))
