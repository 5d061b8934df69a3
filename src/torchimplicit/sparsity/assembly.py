"""The entries of a Jacobian on its pattern, from as few products as its rows or columns have colours."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from torchimplicit.linear.pattern import FullBand, Pattern, places

PUSH_COST = 2  # of a Jacobian-vector product, in vector-Jacobian products: it is the derivative of one
STENCIL = 64  # entries of a row of what may be a stencil
MORE = 6  # colours more than the least number with which it is still well coloured
FEW = 16  # colours for each of which a pass costs less than sorting
APART = 64  # rows or columns at most that have products of their own
AT_ONCE = 2**16  # entries of vectors up to which all products are taken in one batched sweep


class Products(Protocol):
    """What the entries are found by: the products of a Jacobian with many vectors."""

    def matvec(self, x: Tensor) -> Tensor: ...

    def rmatvec(self, y: Tensor) -> Tensor: ...

    def sweep(self, vectors: Tensor, adjoint: bool) -> Tensor: ...


class Plan(NamedTuple):
    """Which products give the entries.

    by_rows : whether those of the transpose, each with rows that have no column in common; else of the matrix, with columns that
        have no row in common.
    seeds : the colour of each row, or column; one product for all of one colour.
    apart : columns, or rows, so full that they would part all others: each has one product of the other kind, which gives all of it.
    """

    by_rows: bool
    seeds: Tensor
    apart: Tensor


class Assembly:
    """A pattern with colours: rows of one colour have no column in common, so that one product with the transpose gives all of them;
    or columns, with no row in common. Of a few full columns, or rows, that stand in the way each is found by itself.

    Source: Curtis, Powell and Reid, On the estimation of sparse Jacobian matrices, J. Inst. Maths Applics 13 (1974); Coleman and
    Verma, The efficient computation of sparse Jacobian matrices using automatic differentiation, SIAM J. Sci. Comput. 19 (1998), for
    the two kinds of products together.
    """

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern

    @cached_property
    def plan(self) -> Plan:
        """That with the lowest cost. A line with k entries takes k colours at least."""
        pattern = self.pattern
        if isinstance(pattern, FullBand):
            return Plan(True, torch.arange(pattern.n) % pattern.diagonals, torch.arange(0))
        in_columns, in_rows = torch.bincount(pattern.columns, minlength=pattern.n), pattern.starts.diff()
        cost_by_rows, columns = _fullest(in_columns, 1, PUSH_COST)
        cost_by_columns, rows = _fullest(in_rows, PUSH_COST, 1)
        by_rows = cost_by_rows <= cost_by_columns
        apart = columns if by_rows else rows
        if not len(apart):
            return Plan(by_rows, colour(pattern, by_rows), apart)
        rest = ~torch.isin(pattern.columns if by_rows else pattern.rows, apart)
        left = Pattern(pattern.rows[rest], pattern.columns[rest], pattern.m, pattern.n)
        return Plan(by_rows, colour(left, by_rows), apart)

    @cached_property
    def colours(self) -> int:
        """How many products the entries take."""
        return self._shared + len(self.plan.apart)

    @cached_property
    def _shared(self) -> int:
        """How many of them are not those of a single line."""
        seeds = self.plan.seeds
        return int(seeds.amax()) + 1 if len(seeds) else 0

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        """Where each entry is found: the product, and the place in it."""
        by_rows, seeds, apart = self.plan
        rows, columns = self.pattern.rows, self.pattern.columns
        which, place, crossing = (seeds[rows], columns, rows) if by_rows else (seeds[columns], rows, columns)
        if not len(apart):
            return which, place
        number = place.new_full((max(self.pattern.m, self.pattern.n),), -1)
        number[apart] = torch.arange(self._shared, self.colours, device=apart.device)
        alone = number[place]
        return torch.where(alone < 0, which, alone), torch.where(alone < 0, place, crossing)

    @cached_property
    def _by_colour(self) -> list[tuple[Tensor, Tensor]]:
        """For each product the entries that it gives, and their places in it."""
        which, place = self._places
        if self.colours <= FEW:
            parts = [places(which == colour) for colour in range(self.colours)]
        else:
            parts = [*which.argsort(stable=True).split(torch.bincount(which, minlength=self.colours).tolist())]
        return [(entries, place[entries]) for entries in parts]

    def values(self, jacobian: Products, like: Tensor) -> Tensor:
        """The entries (B, k) of the Jacobians of B systems, row by row; ``like`` (B, n) tells dtype and device."""
        batch, device = like.shape[0], like.device
        by_rows, seeds, apart = self.plan.by_rows, self.plan.seeds.to(device), self.plan.apart.to(device)
        if like.numel() * self.colours <= AT_ONCE:
            which, place = (part.to(device) for part in self._places)
            vectors = (seeds == torch.arange(self._shared, device=device).unsqueeze(-1)).to(like.dtype)
            swept = jacobian.sweep(vectors.unsqueeze(1).expand(-1, batch, -1), by_rows)
            if len(apart):
                units = (torch.arange(like.shape[-1], device=device) == apart.unsqueeze(-1)).to(like.dtype)
                swept = torch.cat([swept, jacobian.sweep(units.unsqueeze(1).expand(-1, batch, -1), not by_rows)])
            return swept[which, :, place].mT
        shared, alone = (jacobian.rmatvec, jacobian.matvec) if by_rows else (jacobian.matvec, jacobian.rmatvec)
        found = like.new_empty(batch, len(self.pattern.rows))
        for number, (entries, place) in enumerate(self._by_colour):
            if number < self._shared:
                product = shared((seeds == number).to(like.dtype).expand(batch, -1))
            else:
                unit = torch.zeros_like(like)
                unit[:, apart[number - self._shared]] = 1
                product = alone(unit)
            found[:, entries.to(device)] = product[:, place.to(device)]
        return found


def bands_of(band: FullBand, jacobian: Products, like: Tensor) -> Tensor:
    """The diagonals of Jacobians whose entries are those of a band, (B, lower + upper + 1, n), as :class:`torchimplicit.linear.Banded`
    takes them; ``like`` (B, n) tells dtype and device. One product for each: of every so manyth row no two have a column in common."""
    period = band.diagonals
    found = like.new_empty(like.shape[0], period, band.n)
    for colour in range(period):
        seed = torch.zeros_like(like)
        seed[:, colour::period] = 1
        product = jacobian.rmatvec(seed)
        for below in range(
            -band.upper, band.lower + 1
        ):  # i − j, and from some j on each such j has an i of that colour
            j = (colour - below) % period
            found[:, band.upper + below, j::period] = product[:, j::period]
    return found


def _fullest(entries: Tensor, cost: int, cost_alone: int) -> tuple[int, Tensor]:
    """The lines, with so many ``entries`` each, that are better found alone; and the least that all lines cost then."""
    most = entries.topk(min(APART + 1, len(entries)))
    if not len(most.values):
        return 0, most.indices
    total = cost * most.values + cost_alone * torch.arange(len(most.values), device=entries.device)
    k = int(total.argmin())
    return int(total[k]), most.indices[:k]


def colour(pattern: Pattern, by_rows: bool) -> Tensor:
    """The colours of the rows of a pattern, integers from 0: no two of one colour share a column; or those of the columns.

    Their numbers modulo some p, if that will do with few more colours than there must be, as it does for stencils; else greedy, one
    after the other.
    """
    import numpy as np
    from scipy.optimize._numdiff import group_columns
    from scipy.sparse import csc_array, csr_array

    starts, columns = (index.cpu().numpy() for index in pattern.blocks(1))
    entries = np.ones(len(columns), dtype=np.int8), columns, starts
    m, n = pattern.m, pattern.n
    matrix = (
        csc_array(entries, shape=(n, m)) if by_rows else csr_array(entries, shape=(m, n))
    )  # the transposed, or itself
    count = matrix.shape[1]
    period = _period(matrix.tocsr())
    if period is not None:
        return torch.arange(count) % period
    return torch.from_numpy(group_columns(matrix, order=np.arange(count)).astype(np.int64))


def _period(matrix: Any) -> int | None:
    """The smallest p, near the least number of colours, for which columns that share a row differ modulo p."""
    import numpy as np

    columns, row = matrix.indices, np.repeat(np.arange(matrix.shape[0], dtype=np.int32), np.diff(matrix.indptr))
    least = int(np.diff(matrix.indptr).max(initial=0))
    if not 0 < least <= STENCIL:
        return None
    met = np.zeros(matrix.shape[1], dtype=bool)
    for apart in range(1, least):
        together = row[apart:] == row[:-apart]
        met[np.abs(columns[apart:] - columns[:-apart]) * together] = True
    differences = met[1:].nonzero()[0] + 1  # and 0 stands for those of two rows
    if len(differences) > STENCIL**2:
        return None
    return next((p for p in range(least, least + MORE + 1) if (differences % p).all()), None)
