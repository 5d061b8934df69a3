"""Matrices known by their products only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torchimplicit.autograd.products import Linearisation
from torchimplicit.autograd.transforms import inside_functorch
from torchimplicit.linear.operators import LinearOperator


class MatrixFree(LinearOperator):
    """A square operator known by its products only.

    Args:
        matvec: x -> A x, for x of shape (*batch_shape, n); row b of the result depends on row b of x alone.
        rmatvec: y -> Aᴴ y likewise. Without it Aᴴ y is the vector-Jacobian product of `matvec`, which must then be
            differentiable in x (by `torch.autograd.grad`, or by `torch.func.vjp` inside a function transform).
        n: number of unknowns.
        batch_shape: shape of the batch of operators.
        dtype, device: of the vectors; torch's defaults if left out.
        symmetric, positive_definite: promises about A; with either, `matvec` serves as `rmatvec`.
        lower, upper: promises that A[i, j] = 0 where i − j > lower, or j − i > upper: its bands are then found by
            lower + upper + 1 products, and it is solved within them.
        leading: both callables take (*lead, *batch_shape, n).

    Raises:
        ValueError: a callable returned something else than a vector like its argument (at the product).
    """

    def __init__(
        self,
        matvec: Callable[[Tensor], Tensor],
        rmatvec: Callable[[Tensor], Tensor] | None = None,
        *,
        n: int,
        batch_shape: Sequence[int] = (),
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        symmetric: bool = False,
        positive_definite: bool = False,
        lower: float = math.inf,
        upper: float = math.inf,
        leading: bool = False,
    ) -> None:
        super().__init__(
            (*batch_shape, n, n),
            dtype or torch.get_default_dtype(),
            torch.device(device) if device is not None else torch.empty(0).device,
            lower=lower,
            upper=upper,
            symmetric=symmetric,
            positive_definite=positive_definite,
        )
        self.leading = leading
        self._matvec = matvec
        self._rmatvec = matvec if rmatvec is None and self.symmetric else rmatvec
        self._linearisation: Linearisation | None = None

    def matvec(self, x: Tensor) -> Tensor:
        return self._checked("matvec", self._matvec(x), x)

    def rmatvec(self, y: Tensor) -> Tensor:
        return self._pullback(y) if self._rmatvec is None else self._checked("rmatvec", self._rmatvec(y), y)

    def _pullback(self, y: Tensor) -> Tensor:
        linearisation = self._linearisation
        if linearisation is None or inside_functorch() or linearisation.value.shape != y.shape:
            linearisation = Linearisation(self.matvec, (torch.zeros_like(y),))
            # A is linear: one evaluation serves every product. A tensor must not outlive the transform that made it.
            self._linearisation = None if inside_functorch() else linearisation
        (x,) = linearisation.pull(y)
        if x is None:
            raise ValueError(
                "matvec is not differentiable (autograd sees no path from x to its result), so Aᴴ y cannot be "
                "derived from it; pass rmatvec, or symmetric=True if A is symmetric"
            )
        return x

    def _checked(self, name: str, y: Tensor, x: Tensor) -> Tensor:
        if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype:
            got = f"a tensor of shape {tuple(y.shape)} and {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(
                f"{name} was given x of shape {tuple(x.shape)} and {x.dtype} and returned {got}; "
                f"expected the same shape and dtype as x (n = {self.shape[-1]}, batch shape {tuple(self.batch_shape)})"
            )
        return y
