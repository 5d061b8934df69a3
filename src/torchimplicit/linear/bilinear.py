"""Products of matrices that have their entries in given places, with derivatives of every order that are such products again."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Places(Protocol):
    """Where the entries of (m, n) matrices stand, and how one multiplies with them."""

    def product(self, values: Tensor, x: Tensor, adjoint: bool) -> Tensor:
        """A x, or Aᴴ x, for matrices with entries (*batch, e) and vectors (*lead, *batch, n). Plain tensors."""
        ...

    def sampled(self, u: Tensor, w: Tensor, lead: tuple[int, ...]) -> Tensor:
        """The entries of u wᴴ in their places, (*batch, e), added up over the dimensions ``lead``. Plain tensors."""
        ...


def multiply(places: Places, values: Tensor, x: Tensor, adjoint: bool = False) -> Tensor:
    """A x, or Aᴴ x, for matrices with entries (*batch, e) and vectors (*lead, *batch, n)."""
    y: Tensor = _Multiply.apply(places, values, x, adjoint)
    return y


def sample(places: Places, u: Tensor, w: Tensor, batch_ndim: int) -> Tensor:
    """The entries of u wᴴ in their places, (*batch, e), added up over the leading dimensions of u (*lead, *batch, m) and w."""
    s: Tensor = _Sample.apply(places, u, w, batch_ndim)
    return s


class _Multiply(torch.autograd.Function):
    """Bilinear in the entries and the vector; its pullbacks are ``multiply`` and ``sample``."""

    @staticmethod
    def forward(places: Places, values: Tensor, x: Tensor, adjoint: bool) -> Tensor:
        return places.product(values, x, adjoint)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.places, values, x, ctx.adjoint = inputs
        ctx.save_for_backward(values, x)
        ctx.save_for_forward(values, x)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        values, x = ctx.saved_tensors
        of_values = of_x = None
        if ctx.needs_input_grad[1]:
            u, w = (x, v) if ctx.adjoint else (v, x)
            of_values = sample(ctx.places, u, w, values.ndim - 1)
        if ctx.needs_input_grad[2]:
            of_x = multiply(ctx.places, values, v, not ctx.adjoint)
        return None, of_values, of_x, None

    @staticmethod
    def jvp(ctx: Any, _p: None, dvalues: Tensor | None, dx: Tensor | None, _a: None) -> Tensor:
        values, x = ctx.saved_tensors
        terms = [] if dx is None else [multiply(ctx.places, values, dx, ctx.adjoint)]
        terms += [] if dvalues is None else [multiply(ctx.places, dvalues, x, ctx.adjoint)]
        return terms[0] + terms[1] if len(terms) == 2 else terms[0]

    @staticmethod
    def vmap(info: Any, in_dims: Any, places: Places, values: Tensor, x: Tensor, adjoint: bool) -> tuple[Tensor, int]:
        of_values, of_x = in_dims[1:3]
        if of_values is None:
            return multiply(places, values, x.movedim(of_x, 0), adjoint), 0
        values = values.movedim(of_values, 0)
        x = _batched(x, of_x, info.batch_size, values.ndim - 1)
        return multiply(places, values, x, adjoint), x.ndim - values.ndim


class _Sample(torch.autograd.Function):
    """Bilinear over the reals in u and w; its pullbacks are products."""

    @staticmethod
    def forward(places: Places, u: Tensor, w: Tensor, batch_ndim: int) -> Tensor:
        return places.sampled(u, w, tuple(range(u.ndim - 1 - batch_ndim)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.places, u, w, ctx.batch_ndim = inputs
        ctx.save_for_backward(u, w)
        ctx.save_for_forward(u, w)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        u, w = ctx.saved_tensors
        of_u = multiply(ctx.places, v, w) if ctx.needs_input_grad[1] else None
        of_w = multiply(ctx.places, v, u, adjoint=True) if ctx.needs_input_grad[2] else None
        return None, of_u, of_w, None

    @staticmethod
    def jvp(ctx: Any, _p: None, du: Tensor | None, dw: Tensor | None, _b: None) -> Tensor:
        u, w = ctx.saved_tensors
        terms = [] if du is None else [sample(ctx.places, du, w, ctx.batch_ndim)]
        terms += [] if dw is None else [sample(ctx.places, u, dw, ctx.batch_ndim)]
        return terms[0] + terms[1] if len(terms) == 2 else terms[0]

    @staticmethod
    def vmap(info: Any, in_dims: Any, places: Places, u: Tensor, w: Tensor, batch_ndim: int) -> tuple[Tensor, int]:
        u, w = (_batched(v, dim, info.batch_size, batch_ndim + 1) for v, dim in zip((u, w), in_dims[1:3]))
        return sample(places, u, w, batch_ndim + 1), 0


def _batched(x: Tensor, dim: int | None, size: int, batch_ndim: int) -> Tensor:
    """Vectors whose vmapped dimension comes first among the last ``batch_ndim`` ones before n."""
    x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.movedim(0, x.ndim - 1 - batch_ndim)
