"""Factors of sparse matrices, made by a library outside of torch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from torchimplicit.linear.estimated import Estimated
from torchimplicit.linear.external import applied
from torchimplicit.linear.pattern import Pattern
from torchimplicit.linear.vectors import fit
from torchimplicit.norms import inverse_power_of_two

Solve = Callable[[Any, bool], Any]
"""x with A x = b, or Aᴴ x = b, for columns b (n, k): an array of NumPy for another."""


def installed(package: str) -> bool:
    """Whether a library's package can be imported."""
    return find_spec(package) is not None


class SparseFactors(Estimated):
    """Factors of D A C for each matrix of the batch, all as the blocks of one: entries (*batch, e) in the places of a pattern.

    D and C are powers of two that bring the largest entries of rows and columns to size one. A matrix that has no factors solves
    to NaN.
    """

    title, final = "", True
    extra = "scipy", "scipy"  # the package that it needs, and the extra that installs it

    def __init__(self, values: Tensor, pattern: Pattern) -> None:
        self.batch_shape, self.pattern = values.shape[:-1], pattern
        values = values.detach()
        d, c = self._scales(values)
        super().__init__(values.dtype, lambda: (d, c))
        values = values * d.index_select(-1, pattern.rows) * c.index_select(-1, pattern.columns)
        values = values.reshape(-1, values.shape[-1])
        finite = values.isfinite().all(-1).nonzero().flatten()
        usable = values if len(finite) == len(values) else values[finite]
        try:
            self._factors = [(finite, self._factorised(usable))] if len(finite) else []
        except (RuntimeError, ArithmeticError):  # one of them is exactly singular
            self._factors = []
            for at in finite.split(1) if len(finite) > 1 else ():
                with suppress(RuntimeError, ArithmeticError):
                    self._factors.append((at, self._factorised(values[at])))

    @abstractmethod
    def _factorised(self, values: Tensor) -> Solve:
        """What solves with k matrices as the blocks of one, from their entries (k, e).

        Raises RuntimeError or ArithmeticError where one of them has no factors.
        """

    def _by_columns(self, values: Tensor) -> Any:
        """The blocks as a matrix of SciPy."""
        from scipy.sparse import csc_array

        k, pattern = len(values), self.pattern.transposed
        starts, rows = (index.numpy() for index in pattern.blocks(k))
        entries = values.index_select(-1, self.pattern.order).resolve_conj().flatten().numpy()
        return csc_array((entries, rows, starts), shape=(k * pattern.n, k * pattern.m))

    def _unsolved(self, b: Tensor) -> Tensor:
        """What a system without factors solves to."""
        return torch.full_like(b, torch.nan)

    def _scales(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The diagonals of D and C, (*batch, n)."""
        pattern = self.pattern
        d = inverse_power_of_two(_largest(values.abs(), pattern.rows, pattern.m))
        values = values * d.index_select(-1, pattern.rows)
        return d, inverse_power_of_two(_largest(values.abs(), pattern.columns, pattern.n))

    @property
    def complete(self) -> bool:
        """Whether all matrices have factors."""
        return sum(len(at) for at, _ in self._factors) == self.batch_shape.numel()

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """x with A x = b, or Aᴴ x = b: (*lead, *batch, n). Differentiable in b."""
        return applied(self._solve, fit(b, self.batch_shape, self.pattern.n, self.dtype, name="b"), adjoint)

    def _solve(self, b: Tensor, adjoint: bool) -> Tensor:
        before, after = self.units[::-1] if adjoint else self.units
        shape = b.shape
        b = (before * b).reshape(-1, self.batch_shape.numel(), self.pattern.n)
        if len(self._factors) == 1 and self.complete:  # nothing to pick out
            return after * _columns(self._factors[0][1], b, adjoint).reshape(shape)
        x = self._unsolved(b)
        for at, solve in self._factors:
            x[:, at] = _columns(solve, b[:, at], adjoint)
        return after * x.reshape(shape)


def _columns(solve: Solve, b: Tensor, adjoint: bool) -> Tensor:
    """What the library makes of right-hand sides b (L, k, n)."""
    x = solve(b.flatten(1).resolve_conj().numpy().T, adjoint)
    return torch.from_numpy(x.T).to(b.dtype).reshape(b.shape)


def _largest(size: Tensor, index: Tensor, n: int) -> Tensor:
    """The largest of the numbers (..., e) that belong to each row, or column, (..., n)."""
    zeros = torch.zeros(*size.shape[:-1], n, dtype=size.dtype)
    return zeros.scatter_reduce(-1, index.expand_as(size), size, "amax")


def symmetric_scales(values: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """The diagonal of D, twice, that brings those of D A D to size one, (*batch, n); one where A has a zero there."""
    diagonal = torch.zeros(*values.shape[:-1], pattern.n, dtype=values.real.dtype)
    on = (pattern.rows == pattern.columns).nonzero().flatten()
    diagonal = diagonal.index_add(-1, pattern.rows[on], values[..., on].real)
    d = inverse_power_of_two(diagonal.abs().sqrt())
    return d, d
