"""Linear maps that are computed outside of torch, by SciPy, say: differentiable in the vector, and vmapped over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import inside_functorch, inside_transform, without_dead_wrappers
from torchimplicit.private.autograd import apply as function_applied

Apply = Callable[[Tensor, bool], Tensor]


def applied(apply: Apply, x: Tensor, adjoint: bool) -> Tensor:
    """``apply(x, adjoint)`` for plain tensors x (*lead, *batch_shape, n), as an operation that autograd and vmap know."""
    y: Tensor
    if not (torch.is_grad_enabled() or inside_transform()):  # nothing is recorded
        (x,) = without_dead_wrappers((x,))
        return apply(x, adjoint)
    if inside_functorch():
        y = _External.apply(apply, x, adjoint)
    else:
        y = function_applied(_External, apply, *without_dead_wrappers((x,)), adjoint)
    return y


class _External(torch.autograd.Function):
    """The derivative of a linear map is itself, and in reverse its adjoint."""

    @staticmethod
    def forward(apply: Apply, x: Tensor, adjoint: bool) -> Tensor:
        return apply(x, adjoint)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.of, _, ctx.adjoint = inputs

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[None, Tensor, None]:
        return None, applied(ctx.of, v, not ctx.adjoint), None

    @staticmethod
    def jvp(ctx: Any, _of: None, dx: Tensor, _adjoint: None) -> Tensor:
        return applied(ctx.of, dx, ctx.adjoint)

    @staticmethod
    def vmap(info: Any, in_dims: Any, apply: Apply, x: Tensor, adjoint: bool) -> tuple[Tensor, int]:
        return applied(apply, x.movedim(in_dims[1], 0), adjoint), 0
