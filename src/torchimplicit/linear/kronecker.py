"""Kronecker products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchimplicit.linear.direct import Composed, Direct
from torchimplicit.linear.operators import LinearOperator, common_batch

Map = Callable[[Tensor], Tensor]


class Kronecker(LinearOperator):
    """A ⊗ B: a vector is a matrix X, written row by row, of which it makes A X Bᵀ.

    A and B of shapes (m, n) and (p, q) give (m p, n q). A solve with A ⊗ B is one with A and one with B.
    """

    parts = ("A", "B")
    leading = True

    def __init__(self, A: LinearOperator, B: LinearOperator) -> None:
        batch = common_batch("A ⊗ B", A, B)
        (m, n), (p, q) = A.shape[-2:], B.shape[-2:]
        facts = A.structure.kronecker(B.structure, q if p == q else max(p, q))
        super().__init__((*batch, m * p, n * q), A.dtype, A.device, **facts.as_keywords())
        self.A, self.B = A, B
        self.explicit = A.explicit and B.explicit

    def matvec(self, x: Tensor) -> Tensor:
        return _both(x, self.A.shape[-1], self.A.apply, self.B.apply)

    def rmatvec(self, y: Tensor) -> Tensor:
        A, B = (lambda v: self.A.apply(v, adjoint=True)), (lambda v: self.B.apply(v, adjoint=True))
        return _both(y, self.A.shape[-2], A, B)

    def to_dense(self) -> Tensor:
        A, B = self.A.to_dense(), self.B.to_dense()
        return (A[..., :, None, :, None] * B[..., None, :, None, :]).flatten(-4, -3).flatten(-2)

    def direct(self) -> Direct | None:
        states = [part.direct() if part.shape[-1] == part.shape[-2] else None for part in (self.A, self.B)]
        A, B = states
        return None if A is None or B is None else _Solves(A, B, self.A.shape[-1])


class _Solves(Composed):
    """By the states of A, with so many unknowns, and B."""

    def __init__(self, A: Direct, B: Direct, n: int) -> None:
        super().__init__(f"{A.title} ⊗ {B.title}", (A, B))
        self.n = n

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        A, B = self.parts
        return _both(b, self.n, lambda v: A.solve(v, adjoint), lambda v: B.solve(v, adjoint))


def _both(x: Tensor, n: int, A: Map, B: Map) -> Tensor:
    """A X Bᵀ for the matrices X with n rows: B works on the rows, which stand in front for that, then A on the columns."""
    rows = B(x.unflatten(-1, (n, -1)).movedim(-2, 0))
    columns = A(rows.movedim(0, -1).movedim(-2, 0))
    return torch.flatten(columns.movedim(0, -1), -2)
