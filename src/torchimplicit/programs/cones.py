"""Products of cones, and the blocks of a vector that belong to each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

ROOT2 = 2**0.5


class Block(NamedTuple):
    """``cones`` of one ``kind`` with ``size`` numbers each, from ``start`` on."""

    kind: str
    start: int
    cones: int
    size: int

    def of(self, v: Tensor) -> Tensor:
        """Their numbers of vectors (..., m): (..., cones, size)."""
        return v[..., self.start : self.start + self.cones * self.size].unflatten(-1, (self.cones, self.size))


@dataclass(frozen=True)
class Cones:
    """The cone K of a :func:`torchimplicit.cone_program`, a product, in this order.

    zero : how many rows are equalities, s = 0.
    nonnegative : how many rows are s ≥ 0.
    second_order : the sizes of cones ‖(s₂, ..., s_k)‖ ≤ s₁.
    positive_semidefinite : the orders n of symmetric matrices without negative eigenvalues. Each has n(n + 1)/2 rows, its lower
        triangle row by row, in which what stands beside the diagonal is times √2 (:meth:`packed`, :meth:`matrix`).
    exponential : how many cones of three rows, {(x, y, z): y > 0, y exp(x/y) ≤ z} and its limits.

    Raises:
        TypeError, ValueError: a number is no count, or a list no list of them.
    """

    zero: int = 0
    nonnegative: int = 0
    second_order: Sequence[int] = ()
    positive_semidefinite: Sequence[int] = ()
    exponential: int = 0

    def __post_init__(self) -> None:
        for name in ("zero", "nonnegative", "exponential"):
            if not _is_count(getattr(self, name), 0):
                raise ValueError(f"Cones: {name} must be a count, an integer >= 0; got {getattr(self, name)!r}.")
        for name in ("second_order", "positive_semidefinite"):
            sizes = getattr(self, name)
            if isinstance(sizes, (str, int)) or not all(_is_count(size, 1) for size in sizes):
                raise ValueError(f"Cones: {name} must be a list of sizes, integers >= 1, one for each; got {sizes!r}.")
            object.__setattr__(self, name, tuple(sizes))

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Neighbours of the same kind and size together."""
        each = [("zero", 1)] * bool(self.zero) + [("nonnegative", 1)] * bool(self.nonnegative)
        counts = [self.zero] * bool(self.zero) + [self.nonnegative] * bool(self.nonnegative)
        for kind, sizes in (("second_order", self.second_order), ("positive_semidefinite", self.positive_semidefinite)):
            for size, run in groupby(sizes):
                each.append((kind, size if kind == "second_order" else size * (size + 1) // 2))
                counts.append(len(list(run)))
        if self.exponential:
            each.append(("exponential", 3))
            counts.append(self.exponential)
        blocks, start = [], 0
        for (kind, size), count in zip(each, counts, strict=True):
            blocks.append(Block(kind, start, count, size))
            start += count * size
        return tuple(blocks)

    @property
    def rows(self) -> int:
        """How many numbers s has."""
        return sum(block.cones * block.size for block in self.blocks)

    @staticmethod
    def packed(S: Tensor) -> Tensor:
        """Symmetric matrices (..., n, n) as the rows (..., n(n + 1)/2) of a cone; inner products stay what they are."""
        row, column = _triangle(S.shape[-1], S.device)
        scale = torch.ones_like(row, dtype=S.dtype).masked_fill(row != column, ROOT2)
        return S[..., row, column] * scale

    @staticmethod
    def matrix(v: Tensor) -> Tensor:
        """The matrices (..., n, n) again."""
        n = int(((8 * v.shape[-1] + 1) ** 0.5 - 1) / 2 + 0.5)
        row, column = _triangle(n, v.device)
        place = torch.empty(n, n, dtype=torch.int64, device=v.device)
        numbers = torch.arange(v.shape[-1], device=v.device)
        place[row, column] = numbers
        place[column, row] = numbers
        scale = torch.full((n, n), 1 / ROOT2, dtype=v.dtype, device=v.device).fill_diagonal_(1)
        return v[..., place] * scale


def _triangle(n: int, device: torch.device) -> Tensor:
    return torch.tril_indices(n, n, device=device)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
