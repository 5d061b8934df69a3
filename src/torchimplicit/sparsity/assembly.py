"""The entries of a Jacobian on its pattern, from as few products as its rows or columns have colours."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from torchimplicit.linear.pattern import Pattern

PUSH_COST = 2  # of a Jacobian-vector product, in vector-Jacobian products: it is the derivative of one
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
        of_rows = int(pattern.transposed.starts.diff().amax()) if pattern.n else 0
        by_rows = of_rows <= PUSH_COST * of_columns
        return by_rows, colour(pattern.transposed if by_rows else pattern)

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

    def values(self, jacobian: Products, like: Tensor) -> Tensor:
        """The entries (B, k) of the Jacobians of B systems, row by row; ``like`` (B, n) tells dtype and device."""
        batch = like.shape[0]
        seeds = self._coloured[1].to(like.device)
        which, place = (part.to(like.device) for part in self._places)
        numbers = torch.arange(self.colours, device=like.device)
        if like.numel() * self.colours <= AT_ONCE:
            vectors = (seeds == numbers.unsqueeze(-1)).to(like.dtype).unsqueeze(1).expand(-1, batch, -1)
            return jacobian.sweep(vectors, self.by_rows)[which, :, place].mT
        product = jacobian.rmatvec if self.by_rows else jacobian.matvec
        found = like.new_empty(batch, len(which))
        for number in numbers:
            entries = (which == number).nonzero().squeeze(-1)
            vector = (seeds == number).to(like.dtype).expand(batch, -1)
            found[:, entries] = product(vector)[:, place[entries]]
        return found


def colour(pattern: Pattern) -> Tensor:
    """The colours of the columns of a pattern, integers from 0: no two of one colour share a row.

    Greedy, in their own order, which for the matrices of meshes takes few colours.
    """
    import numpy as np
    from scipy.optimize._numdiff import group_columns
    from scipy.sparse import csr_array

    starts, columns = (index.cpu().numpy() for index in pattern.blocks(1))
    matrix = csr_array((np.ones(len(columns), dtype=np.int8), columns, starts), shape=(pattern.m, pattern.n))
    return torch.from_numpy(group_columns(matrix, order=np.arange(pattern.n)).astype(np.int64))
