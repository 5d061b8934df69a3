"""Block diagonal matrices with blocks of any kinds and sizes. (Blocks of one size are a batch: `Dense` takes them at once.)"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from torchimplicit.linear.direct import Composed, Direct
from torchimplicit.linear.operators import LinearOperator, common_batch
from torchimplicit.linear.structure import Structure


class BlockDiagonal(LinearOperator):
    """The operators ``blocks`` one after the other on the diagonal."""

    parts = ("blocks",)
    leading = True

    def __init__(self, blocks: Sequence[LinearOperator]) -> None:
        if not blocks:
            raise ValueError("BlockDiagonal got no blocks")
        batch = common_batch("BlockDiagonal", *blocks)
        first, rows, columns = blocks[0], *(sum(block.shape[k] for block in blocks) for k in (-2, -1))
        square = all(block.shape[-2] == block.shape[-1] for block in blocks)
        facts = reduce(Structure.plus, (block.structure for block in blocks)) if square else Structure()
        super().__init__((*batch, rows, columns), first.dtype, first.device, **facts.as_keywords())
        self.blocks = tuple(blocks)
        self.explicit = all(block.explicit for block in blocks)

    def matvec(self, x: Tensor) -> Tensor:
        return _each([block.apply for block in self.blocks], x, [block.shape[-1] for block in self.blocks])

    def rmatvec(self, y: Tensor) -> Tensor:
        products = [block.H.apply for block in self.blocks]
        return _each(products, y, [block.shape[-2] for block in self.blocks])

    def direct(self) -> Direct | None:
        states = [block.direct() if block.shape[-1] == block.shape[-2] else None for block in self.blocks]
        known = [state for state in states if state is not None]
        return _Solves(known, [block.shape[-1] for block in self.blocks]) if len(known) == len(states) else None


class _Solves(Composed):
    """By the states of the blocks."""

    def __init__(self, states: Sequence[Direct], sizes: Sequence[int]) -> None:
        super().__init__("block by block", states)
        self.sizes = sizes

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        parts = zip(self.parts, b.split(list(self.sizes), -1), strict=True)
        return torch.cat([state.solve(part, adjoint) for state, part in parts], -1)


def _each(products: Sequence[Callable[[Tensor], Tensor]], x: Tensor, sizes: Sequence[int]) -> Tensor:
    return torch.cat([product(part) for product, part in zip(products, x.split(list(sizes), -1), strict=True)], -1)
