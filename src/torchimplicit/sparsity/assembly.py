"""The entries of a Jacobian on its pattern, from as few products as its rows or columns have colours."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from torchimplicit.linear.pattern import Pattern

PUSH_COST = 2  # of a Jacobian-vector product, in vector-Jacobian products: it is the derivative of one
STENCIL = 64  # entries of a row of what may be a stencil
MORE = 6  # colours more than the least number with which it is still well coloured
FEW = 16  # colours for each of which a pass costs less than sorting
AT_ONCE = 2**16  # entries of vectors up to which all products are taken in one batched sweep


class Products(Protocol):
    """What the entries are found by: the products of a Jacobian with many vectors."""

    def matvec(self, x: Tensor) -> Tensor: ...

    def rmatvec(self, y: Tensor) -> Tensor: ...

    def sweep(self, vectors: Tensor, adjoint: bool) -> Tensor: ...


class Assembly:
    """A pattern with colours: rows of one colour have no column in common, so that one product with the transpose gives all of them;
    or columns, with no row in common.

    Source: Curtis, Powell and Reid, On the estimation of sparse Jacobian matrices, J. Inst. Maths Applics 13 (1974).
    """

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern

    @cached_property
    def _coloured(self) -> tuple[bool, Tensor]:
        """Whether rows are coloured, and the colours. Rows, unless a column that is too full makes columns cheaper."""
        pattern = self.pattern
        of_columns = int(pattern.starts.diff().amax()) if pattern.m else 0  # at least so many colours
        of_rows = int(torch.bincount(pattern.columns, minlength=1).amax())
        by_rows = of_rows <= PUSH_COST * of_columns
        return by_rows, colour(pattern, by_rows)

    @property
    def by_rows(self) -> bool:
        return self._coloured[0]

    @cached_property
    def colours(self) -> int:
        """How many products the entries take."""
        seeds = self._coloured[1]
        return int(seeds.amax()) + 1 if len(seeds) else 0

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        """Where each entry is found: the product, and the place in it."""
        by_rows, seeds = self._coloured
        rows, columns = self.pattern.rows, self.pattern.columns
        return (seeds[rows], columns) if by_rows else (seeds[columns], rows)

    @cached_property
    def _by_colour(self) -> list[tuple[Tensor, Tensor]]:
        """For each product the entries that it gives, and their places in it."""
        which, place = self._places
        if self.colours <= FEW:
            parts = [(which == colour).nonzero().flatten() for colour in range(self.colours)]
        else:
            parts = [*which.argsort(stable=True).split(torch.bincount(which, minlength=self.colours).tolist())]
        return [(entries, place[entries]) for entries in parts]

    def values(self, jacobian: Products, like: Tensor) -> Tensor:
        """The entries (B, k) of the Jacobians of B systems, row by row; ``like`` (B, n) tells dtype and device."""
        batch, device = like.shape[0], like.device
        seeds = self._coloured[1].to(device)
        if like.numel() * self.colours <= AT_ONCE:
            which, place = (part.to(device) for part in self._places)
            vectors = (seeds == torch.arange(self.colours, device=device).unsqueeze(-1)).to(like.dtype)
            return jacobian.sweep(vectors.unsqueeze(1).expand(-1, batch, -1), self.by_rows)[which, :, place].mT
        product = jacobian.rmatvec if self.by_rows else jacobian.matvec
        found = like.new_empty(batch, len(self.pattern.rows))
        for colour, (entries, place) in enumerate(self._by_colour):
            vector = (seeds == colour).to(like.dtype).expand(batch, -1)
            found[:, entries.to(device)] = product(vector)[:, place.to(device)]
        return found


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

    columns, row = matrix.indices, np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    least = int(np.diff(matrix.indptr).max(initial=0))
    if not 0 < least <= STENCIL:
        return None
    met = np.zeros(matrix.shape[1], dtype=bool)
    for apart in range(1, least):
        together = row[apart:] == row[:-apart]
        met[np.abs(columns[apart:] - columns[:-apart])[together]] = True
    differences = met.nonzero()[0]
    if len(differences) > STENCIL**2:
        return None
    return next((p for p in range(least, least + MORE + 1) if (differences % p).all()), None)
