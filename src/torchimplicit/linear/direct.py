"""The state of a direct solve, and those of matrices that are made of others: they solve by the states of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_
from typing import Protocol

import torch
from torch import Tensor


class Direct(Protocol):
    """What solves A x = b without iterating."""

    @property
    def title(self) -> str:
        """The name of the method."""
        ...

    @property
    def final(self) -> bool:
        """Whether a system that it does not solve is singular. False: it may be a regular one, and another method is tried."""
        ...

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """x with A x = b, or Aᴴ x = b: (*lead, *batch_shape, n)."""
        ...

    @property
    def suspicious(self) -> Tensor:
        """Whether a matrix of the batch may be singular, a cheap guess: bool (*batch_shape)."""
        ...

    @property
    def singular(self) -> Tensor:
        """Whether it is, to working precision: bool (*batch_shape)."""
        ...


class Composed:
    """A state made of others: it is singular where one of them is."""

    def __init__(self, title: str, parts: Sequence[Direct]) -> None:
        self.title, self.parts = title, tuple(parts)
        self.final = all(part.final for part in parts)

    @property
    def suspicious(self) -> Tensor:
        """Whether one of the parts is."""
        return reduce(or_, (part.suspicious for part in self.parts))

    @property
    def singular(self) -> Tensor:
        """Whether one of the parts is."""
        return reduce(or_, (part.singular for part in self.parts))


class Flipped(Composed):
    """Of Aᴴ, from the state of A."""

    def __init__(self, of: Direct) -> None:
        super().__init__(of.title, (of,))

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        return self.parts[0].solve(b, not adjoint)


class Conjugated(Composed):
    """Of Aᵀ, the conjugate of Aᴴ, from the state of A."""

    def __init__(self, of: Direct) -> None:
        super().__init__(of.title, (of,))

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        return self.parts[0].solve(b.conj(), not adjoint).conj()


class InTurn(Composed):
    """Of A B C, from the states of A, B and C."""

    def __init__(self, parts: Sequence[Direct]) -> None:
        super().__init__(" × ".join(part.title for part in parts), parts)

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        return reduce(lambda x, part: part.solve(x, adjoint), self.parts[::-1] if adjoint else self.parts, b)


class Divided(Composed):
    """Of c A for a number c, one for each matrix of the batch."""

    def __init__(self, of: Direct, c: Tensor) -> None:
        super().__init__(of.title, (of,))
        self.c = c

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        return self.parts[0].solve(b / (self.c.conj() if adjoint else self.c).unsqueeze(-1), adjoint)

    @property
    def suspicious(self) -> Tensor:
        """Whether A is, or c is 0."""
        return super().suspicious | (self.c == 0)

    @property
    def singular(self) -> Tensor:
        """Whether A is, or c is 0."""
        return super().singular | (self.c == 0)


class Multiplied:
    """Of A⁻¹: the products with A are its solutions."""

    title, final = "product", True

    def __init__(self, product: Callable[[Tensor, bool], Tensor], like: Tensor) -> None:
        self.product = product
        self.suspicious = self.singular = like

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        return self.product(b, adjoint)


def never(batch_shape: Sequence[int], device: torch.device) -> Tensor:
    """False for every matrix of the batch."""
    return torch.zeros(tuple(batch_shape), dtype=torch.bool, device=device)
