"""Diagonal matrices, and their solve."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import inside_functorch
from torchimplicit.linear.direct import Direct
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.vectors import fit


class Diagonal(LinearOperator):
    """The diagonal matrix of d, shape (*batch_shape, n). Symmetric where d is real."""

    explicit = True
    leading = True
    parts = ("d",)
    options = ("positive_definite",)

    def __init__(self, d: Tensor, positive_definite: bool = False) -> None:
        if d.ndim < 1 or not (d.is_floating_point() or d.is_complex()):
            raise ValueError(
                f"Diagonal got a tensor of shape {tuple(d.shape)} and dtype {d.dtype}; "
                "expected (..., n) of a floating or complex dtype"
            )
        n = d.shape[-1]
        facts = {"symmetric": not d.is_complex(), "positive_definite": positive_definite}
        super().__init__((*d.shape, n), d.dtype, d.device, lower=0, upper=0, **facts)
        self.d = d

    def matvec(self, x: Tensor) -> Tensor:
        return self.d * x

    def rmatvec(self, y: Tensor) -> Tensor:
        return self.d.conj() * y

    def to_dense(self) -> Tensor:
        return torch.diag_embed(self.d)

    def direct(self) -> Direct | None:
        return Division(self.d)

    def _adjoint(self) -> LinearOperator:
        return Diagonal(self.d.conj())

    @property
    def T(self) -> LinearOperator:
        return self


class Division:
    """The state of a diagonal system."""

    title, final = "diagonal", True

    def __init__(self, d: Tensor) -> None:
        self.d = d

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """b / d, or b / d̄ for the adjoint."""
        b = fit(b, self.d.shape[:-1], self.d.shape[-1], self.d.dtype, name="b")
        return b / (self.d.conj() if adjoint else self.d)

    @property
    def suspicious(self) -> Tensor:
        """The same as ``singular``, which costs little here."""
        return self.singular

    @property
    def singular(self) -> Tensor:
        """Whether a system has an entry whose inverse is not finite, or that is not finite itself: bool (*batch_shape)."""
        size = self.d.abs()
        if size.numel() and not inside_functorch():
            smallest, largest = (float(end) for end in size.aminmax())
            # A number that is not subnormal has a finite inverse.
            if torch.finfo(size.dtype).tiny <= smallest and largest < math.inf:
                return torch.zeros(size.shape[:-1], dtype=torch.bool, device=size.device)
        regular = (1 / size < torch.inf) & (size < torch.inf)
        return ~(regular.squeeze(-1) if regular.shape[-1] == 1 else regular.all(-1))
