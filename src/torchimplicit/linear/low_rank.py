"""Matrices that differ by a low rank from one with a direct solve."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from torchimplicit.linear.dense import Dense
from torchimplicit.linear.direct import Composed, Direct
from torchimplicit.linear.lu import LU
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.pattern import Pattern
from torchimplicit.linear.sparse import Sparse
from torchimplicit.linear.vectors import times


class LowRankUpdate(LinearOperator):
    """A + U Vᴴ for an operator A (*batch_shape, n, n), such as a `Diagonal`, and U and V (*batch_shape, n, k).

    V is U where it is left out, and the sum then positive definite with A. A solve takes one with A and one of k equations
    (Sherman, Morrison and Woodbury); where A is singular, or nearly, that fails although the sum may be regular.
    """

    parts = ("A", "U", "V")
    leading = True

    def __init__(self, A: LinearOperator, U: Tensor, V: Tensor | None = None) -> None:
        other = U if V is None else V
        n = A.shape[-1]
        if A.shape[-2] != n or U.shape != other.shape or U.shape[:-1] != (*A.batch_shape, n) or U.dtype != A.dtype:
            raise ValueError(
                f"A + U Vᴴ: A has shape {tuple(A.shape)} and dtype {A.dtype}, U {tuple(U.shape)} and {U.dtype}, V "
                f"{tuple(other.shape)}; expected (..., n, n) and twice (..., n, k)"
            )
        own = V is None
        facts = {"symmetric": own and A.symmetric, "positive_definite": own and A.positive_definite}
        super().__init__(A.shape, A.dtype, A.device, **facts)
        self.A, self.U, self.V = A, U, V
        self.explicit = A.explicit

    @property
    def _sides(self) -> tuple[Tensor, Tensor]:
        return self.U, self.U if self.V is None else self.V

    def matvec(self, x: Tensor) -> Tensor:
        U, V = self._sides
        return self.A.apply(x) + times(U, times(V.mH, x))

    def rmatvec(self, y: Tensor) -> Tensor:
        U, V = self._sides
        return self.A.apply(y, adjoint=True) + times(V, times(U.mH, y))

    def to_dense(self) -> Tensor:
        U, V = self._sides
        return self.A.to_dense() + U @ V.mH

    def direct(self) -> Direct | None:
        bordered = self._bordered(self.A).direct() if isinstance(self.A, Sparse) else None
        if bordered is not None:
            return Bordered(bordered, self.U.shape[-1])
        state = self.A.direct()
        return None if state is None else Woodbury(state, *self._sides)

    def _bordered(self, A: Sparse) -> Sparse:
        """[[A, U], [Vᴴ, −I]], of which the second equations say that y = Vᴴ x."""
        U, V = self._sides
        n, k = U.shape[-2:]
        row, side = torch.arange(n, device=self.device).repeat_interleave(k), n + torch.arange(k, device=self.device)
        rows = torch.cat([A.rows, row, side.repeat(n), side])
        columns = torch.cat([A.columns, side.repeat(n), row, side])
        minus = -torch.ones((*self.batch_shape, k), dtype=self.dtype, device=self.device)
        values = torch.cat([A.values, U.flatten(-2), V.conj().flatten(-2), minus], -1)
        order = torch.argsort(rows * (n + k) + columns)
        return Sparse(values[..., order], Pattern(rows[order], columns[order], n + k, n + k))


class Bordered(Composed):
    """By the state of a matrix with so many more unknowns, which the low rank has brought: it serves a singular A as well."""

    def __init__(self, state: Direct, more: int) -> None:
        super().__init__(state.title, (state,))
        self.more = more

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        x = self.parts[0].solve(torch.nn.functional.pad(b, (0, self.more)), adjoint)
        return x[..., : b.shape[-1]]


class Woodbury(Composed):
    """(A + U Vᴴ)⁻¹ = A⁻¹ − A⁻¹U (I + VᴴA⁻¹U)⁻¹ VᴴA⁻¹, by the state of A.

    Source: Hager, Updating the inverse of a matrix, SIAM Review 31 (1989) 221-239.
    """

    def __init__(self, A: Direct, U: Tensor, V: Tensor) -> None:
        self.A, self.U, self.V = A, U, V
        self.solved_U = A.solve(U.movedim(-1, 0)).movedim(0, -1)
        small = V.mH @ self.solved_U
        self.small = LU().factorize(Dense(small + torch.eye(small.shape[-1], dtype=U.dtype, device=U.device)))
        super().__init__(f"{A.title} and low rank", (A, self.small))
        self.final = False  # A may be singular where the sum is not

    @cached_property
    def _solved_V(self) -> Tensor:
        return self.A.solve(self.V.movedim(-1, 0), adjoint=True).movedim(0, -1)

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        x = self.A.solve(b, adjoint)
        other, solved = (self.U, self._solved_V) if adjoint else (self.V, self.solved_U)
        return x - times(solved, self.small.solve(times(other.mH, x), adjoint))
