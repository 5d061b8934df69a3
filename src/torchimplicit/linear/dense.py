"""Matrices given by all of their entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from torchimplicit.graph.loop import Operands
from torchimplicit.linear.cholesky_or_lu import cholesky_or_lu
from torchimplicit.linear.direct import Direct
from torchimplicit.linear.lu import LU
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.vectors import from_columns, lead_shape, to_columns


class Dense(LinearOperator):
    """A matrix given by its entries, A of shape (*batch_shape, m, n)."""

    explicit = True
    leading = True
    parts = ("A",)
    options = ("symmetric", "positive_definite")

    def __init__(self, A: Tensor, symmetric: bool = False, positive_definite: bool = False) -> None:
        if A.ndim < 2 or not (A.is_floating_point() or A.is_complex()):
            raise ValueError(
                f"Dense got a tensor of shape {tuple(A.shape)} and dtype {A.dtype}; "
                "expected (..., m, n) of a floating or complex dtype"
            )
        super().__init__(A.shape, A.dtype, A.device, symmetric=symmetric, positive_definite=positive_definite)
        self.A = A

    def matvec(self, x: Tensor) -> Tensor:
        return self._product(self.A, x)

    def rmatvec(self, y: Tensor) -> Tensor:
        return self._product(self.A.mH, y)

    def _product(self, A: Tensor, x: Tensor) -> Tensor:
        return from_columns(A @ to_columns(x, self.batch_shape), lead_shape(x, self.batch_shape))

    def to_dense(self) -> Tensor:
        return self.A

    def direct(self) -> Direct | None:
        if self.shape[-1] != self.shape[-2]:
            return None
        return cholesky_or_lu(self) if self.positive_definite else LU().factorize(self)

    @property
    def operands(self) -> Operands:
        return _Entries(self)

    def _adjoint(self) -> LinearOperator:
        return Dense(self.A.mH)


class _Entries(Operands):
    def __init__(self, operator: Dense) -> None:
        super().__init__((operator.A,))
        self.operator = operator

    def _name(self, names: Sequence[Any]) -> None:
        super()._name(names)
        (self.operator.A,) = self.tensors
