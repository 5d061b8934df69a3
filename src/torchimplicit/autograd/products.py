"""Products with Jacobians, never the Jacobian itself; each product can be differentiated again.

``torch.autograd.grad`` does the work in plain code, where it also runs under saved-tensor hooks (activation checkpointing,
``save_on_cpu``), with custom operators and with old-style Functions, all of which ``torch.func`` refuses. Inside a
``torch.func`` transform only ``torch.func`` tells the levels apart, so it does the work there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor

from torchimplicit.autograd.graph import compiled
from torchimplicit.autograd.transforms import inside_functorch
from torchimplicit.autograd.transposes import Transposes, multiplies_transposed
from torchimplicit.private.autograd import grads, without_hooks
from torchimplicit.private.functorch import over_rows

Grads = tuple[Tensor | None, ...]


class Linearisation:
    """f at x, from one evaluation: its value, and the products with its Jacobian in both directions.

    ``pull(u)[i]`` is uᵀ ∂f/∂x[i], like x[i] (None where f does not depend on x[i], or where x[i] holds integers).
    ``push(w)`` is Σᵢ (∂f/∂x[i]) w[i], with None for a w[i] that is zero. It is the derivative of the pullback, which is
    linear in u: forward-mode AD cannot be nested, and many operators have no forward-mode rule.

    With grad mode on, the products can be differentiated, in x and in whatever else f touches.
    """

    def __init__(self, f: Callable[..., Tensor], x: Sequence[Tensor]) -> None:
        self._x = tuple(x)
        self._floats = [i for i, t in enumerate(x) if t.is_floating_point() or t.is_complex()]
        self._transposed: Any = None
        if torch.compiler.is_compiling() or inside_functorch() or torch.is_inference_mode_enabled():
            # autograd records nothing here

            def of_floats(*floats: Tensor) -> Tensor:
                return f(*self._with(floats))

            with without_hooks():
                value_and_pullback: Any = torch.func.vjp(of_floats, *(x[i] for i in self._floats))
            self.value, self._func_pullback = value_and_pullback
            self._graph = None
        else:
            self._inputs = [_variable(x[i]) for i in self._floats]
            with _recording():
                self._graph = f(*self._with(self._inputs))
            self.value = self._graph if torch.is_grad_enabled() else self._graph.detach()

    @staticmethod
    def of_graph(graph: Tensor, x: Sequence[Tensor]) -> Linearisation:
        """From an evaluation that was recorded already: f at x as a graph, in plain code."""
        found = object.__new__(Linearisation)
        found._x = tuple(x)
        found._inputs = list(x)
        found._floats = list(range(len(x)))
        found._graph, found.value, found._transposed = graph, graph.detach(), None
        return found

    @property
    def variables(self) -> int:
        """How many x there are."""
        return len(self._x)

    def restricted(self, which: Sequence[int]) -> Linearisation:
        """The same linearisation in some of the variables, for plain code (inside a transform they are differentiated
        together)."""
        assert self._graph is not None
        part = object.__new__(Linearisation)
        part._x = tuple(self._x[i] for i in which)
        part._inputs = [self._inputs[self._floats.index(i)] for i in which if i in self._floats]
        part._floats = [k for k, i in enumerate(which) if i in self._floats]
        part._graph, part.value, part._transposed = self._graph, self.value, None
        return part

    def pull(self, u: Tensor) -> Grads:
        """The vector-Jacobian products uᵀ ∂f/∂x[i]."""
        return self._spread(self._pull_floats(u, create_graph=torch.is_grad_enabled()))

    def gradient(self, u: Tensor) -> Tensor:
        """uᵀ ∂f/∂x[0], like x[0], that with grad mode on is differentiated again.

        Raises RuntimeError where that cannot be: what torch.compile makes of a function has no second derivative.
        """
        (gradient, *_) = self.pull(u)
        if gradient is None:
            return torch.zeros_like(self._x[0])
        if torch.is_grad_enabled() and self._graph is not None and compiled(self._graph):
            raise RuntimeError(
                "the function is compiled by torch.compile, which gives no second derivatives: a minimum needs those of the "
                "objective, a fit those of the residuals. Pass the function itself (without compile=True)."
            )
        return gradient

    def pull_batch(self, u: Tensor) -> Tensor:
        """Products of many cotangents u (k, *value.shape) with the Jacobian in x[0], in one batched sweep."""
        if self._graph is None:
            return torch.vmap(lambda v: _or_zero(self._func_pullback(v)[0], self._x[0]))(u)
        if not self._graph.requires_grad:
            return u.new_zeros(len(u), *self._x[0].shape)
        (rows,) = _swept(self._graph, self._inputs[:1], u)
        return u.new_zeros(len(u), *self._x[0].shape) if rows is None else rows

    def push_batch(self, w: Tensor) -> Tensor:
        """Products (k, *value.shape) of the Jacobian in x[0] with many vectors w (k, *x[0].shape), in one batched sweep."""
        if self._graph is None:
            return torch.vmap(lambda w: self.push((w,)))(w)
        graph, u = self._pulled
        if not graph.requires_grad:
            return w.new_zeros(len(w), *self.value.shape)
        (columns,) = _swept(graph, (u,), w.flatten(1))
        return w.new_zeros(len(w), *self.value.shape) if columns is None else columns

    def push(self, w: Sequence[Tensor | None]) -> Tensor:
        """The Jacobian-vector product Σᵢ (∂f/∂x[i]) w[i]."""
        direction = _join([_or_zero(w[i], self._x[i]) for i in self._floats])
        if self._graph is None:
            if self._transposed is None:
                with without_hooks():
                    self._transposed = torch.func.vjp(self._joined_pull, torch.zeros_like(self.value))[1]
            return _or_zero(self._transposed(direction)[0], self.value)
        graph, u = self._pulled
        if not graph.requires_grad:
            return torch.zeros_like(self.value)
        return _or_zero(grads(graph, (u,), direction, torch.is_grad_enabled())[0], self.value)

    @cached_property
    def _pulled(self) -> tuple[Tensor, Tensor]:
        """The pullback of a variable u as a graph, and u: built once, for every product with the Jacobian."""
        u = torch.zeros_like(self.value).requires_grad_()
        with _recording():
            return self._joined_pull(u), u

    def _joined_pull(self, u: Tensor) -> Tensor:
        pulled = self._pull_floats(u, create_graph=True)
        return _join([_or_zero(g, self._x[i]) for g, i in zip(pulled, self._floats, strict=True)])

    def _pull_floats(self, u: Tensor, create_graph: bool) -> Grads:
        if self._graph is None:
            return tuple(self._func_pullback(u))
        if not self._graph.requires_grad or not self._inputs:
            return (None,) * len(self._floats)
        if self._transposes is None:
            return grads(self._graph, self._inputs, u, create_graph)
        with self._transposes:
            return grads(self._graph, self._inputs, u, create_graph)

    @cached_property
    def _transposes(self) -> Transposes | None:
        """What keeps the transposes of sparse matrices that a pullback multiplies with; None where there are none."""
        return Transposes() if self._graph is not None and multiplies_transposed(self._graph) else None

    def _with(self, floats: Sequence[Tensor]) -> list[Tensor]:
        full = list(self._x)
        for i, t in zip(self._floats, floats, strict=True):
            full[i] = t
        return full

    def _spread(self, pulled: Grads) -> Grads:
        full: list[Tensor | None] = [None] * len(self._x)
        for i, g in zip(self._floats, pulled, strict=True):
            full[i] = g
        return tuple(full)


def _swept(output: Tensor, inputs: Sequence[Tensor], u: Tensor) -> Grads:
    """``torch.autograd.grad`` of many cotangents u at once.

    Where nothing is recorded that is a level of ``torch.vmap`` around it, which knows more operators than ``is_grads_batched``
    and costs less. A recorded sweep may recompute a checkpoint that itself holds one of us, which no such level allows.
    """
    if torch.is_grad_enabled():
        options = {"retain_graph": True, "create_graph": True, "allow_unused": True}
        return torch.autograd.grad(output, inputs, u, is_grads_batched=True, **options)
    return over_rows(lambda row: grads(output, inputs, row, create_graph=False), u)


def _variable(tensor: Tensor) -> Tensor:
    """A variable to differentiate in: connected to ``tensor`` when derivatives of the derivative may be asked for."""
    if torch.is_grad_enabled() and tensor.requires_grad:
        return tensor.view_as(tensor)
    return (tensor.clone() if tensor.is_inference() else tensor.detach()).requires_grad_()


def _recording() -> AbstractContextManager[Any]:
    """Grad mode on. A graph that only we will consume ignores the caller's saved-tensor hooks: packing its tensors would
    make activation checkpointing around the layer recompute the layer inside its own forward. What is kept is detached: an
    operation that keeps its own output would otherwise keep itself."""
    ours = not torch.is_grad_enabled()
    return unhooked() if ours and hooked() else torch.enable_grad()


@contextmanager
def unhooked() -> Iterator[None]:
    """Grad mode on, out of sight of the caller's saved-tensor hooks."""
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, _unchanged):
        yield


def hooked() -> bool:
    """Whether the caller has saved-tensor hooks: they cannot be disabled where there are some."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks("there are hooks"):
            return False
    except RuntimeError:
        return True


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _or_zero(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad


def _join(parts: Sequence[Tensor]) -> Tensor:
    """Tensors of any shapes and dtypes as one real vector, so that the transposed pullback has a single output."""
    flat = [torch.view_as_real(p.resolve_conj()).reshape(-1) if p.is_complex() else p.reshape(-1) for p in parts]
    if not flat:
        return torch.zeros(0)
    dtype = reduce(torch.promote_types, (p.dtype for p in flat))
    return torch.cat([p.to(dtype) for p in flat])
