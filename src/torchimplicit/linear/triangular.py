"""Triangular matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.linear.direct import Direct
from torchimplicit.linear.estimated import Estimated
from torchimplicit.linear.factors import equilibrate
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.structure import Structure
from torchimplicit.linear.vectors import fit, from_columns, lead_shape, to_columns


class Triangular(LinearOperator):
    """The upper, or the lower, triangle of square matrices A (*batch_shape, n, n). What else A holds is not read."""

    explicit = True
    leading = True
    parts = ("A",)
    options = ("upper",)

    def __init__(self, A: Tensor, upper: bool) -> None:
        floating = A.is_floating_point() or A.is_complex()
        if A.ndim < 2 or A.shape[-1] != A.shape[-2] or not floating:
            raise ValueError(
                f"Triangular got a tensor of shape {tuple(A.shape)} and dtype {A.dtype}; expected (..., n, n) of a floating or "
                "complex dtype"
            )
        facts = Structure(lower=0) if upper else Structure(upper=0)
        super().__init__(A.shape, A.dtype, A.device, **facts.as_keywords())
        self.A, self.upper = A, upper

    def matvec(self, x: Tensor) -> Tensor:
        return from_columns(self.to_dense() @ to_columns(x, self.batch_shape), lead_shape(x, self.batch_shape))

    def rmatvec(self, y: Tensor) -> Tensor:
        return from_columns(self.to_dense().mH @ to_columns(y, self.batch_shape), lead_shape(y, self.batch_shape))

    def to_dense(self) -> Tensor:
        return self.A.triu() if self.upper else self.A.tril()

    def _adjoint(self) -> LinearOperator:
        return Triangular(self.A.mH, not self.upper)

    def direct(self) -> Direct | None:
        return Substitution(self.to_dense(), self.upper)


class Substitution(Estimated):
    """Forward or back substitution."""

    title, final = "substitution", True

    def __init__(self, A: Tensor, upper: bool) -> None:
        super().__init__(A.dtype, lambda: equilibrate(A.detach())[1:])
        self.A, self.upper = A, upper

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """x with A x = b, or Aᴴ x = b: (*lead, *batch_shape, n)."""
        batch = self.A.shape[:-2]
        b = fit(b, batch, self.A.shape[-1], self.A.dtype, name="b")
        A, upper = (self.A.mH, not self.upper) if adjoint else (self.A, self.upper)
        x = torch.linalg.solve_triangular(A, to_columns(b, batch), upper=upper)
        return from_columns(x, lead_shape(b, batch))
