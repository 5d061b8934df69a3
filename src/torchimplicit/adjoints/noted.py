"""A gradient that is taken note of on its way back: how adjoints without a linear solve of their own tell what they did."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import without_dead_wrappers
from torchimplicit.private.autograd import is_batched_by_autograd
from torchimplicit.problem import Problem
from torchimplicit.solution import Record, SolveStats
from torchimplicit.status import Status

Told = Callable[..., SolveStats]  # from the gradient v (B, n) and tensors with the systems in their first dimension


def noted(z: Tensor, problem: Problem, told: Told, *tensors: Tensor) -> Tensor:
    """z (B, n) itself. Where a gradient arrives at it, ``told(v, *tensors)`` are the facts of the backward, for those who ask."""
    record, batch_shape = problem.record, problem.layout.batch_shape

    def note(v: Tensor, *tensors: Tensor) -> None:
        def info() -> Any:
            return told(v, *tensors).info(batch_shape, Record("derivative"))

        record.backward = info

    through: Tensor = _Through.apply(z, note, *tensors)
    return through


def few_steps(steps: int) -> Told:
    """The facts of a gradient of so many plain steps, one vector-Jacobian product each. How far it is off is not known."""
    return partial(_few_steps, steps)


def _few_steps(steps: int, v: Tensor, status: Tensor) -> SolveStats:
    unknown = v.new_full(v.shape[:1], torch.nan)
    ended = torch.where(status == Status.NONFINITE, status, int(Status.MAX_STEPS))
    return SolveStats.counted(ended, torch.full_like(ended, steps), unknown, unknown, 0, steps)


class _Through(torch.autograd.Function):
    """(z, note, *tensors) -> z; its backward is :class:`_Note`."""

    @staticmethod
    def forward(z: Tensor, note: Callable[..., None], *tensors: Tensor) -> Tensor:
        return z.view_as(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.note, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        tensors = without_dead_wrappers(ctx.saved_tensors)
        if not is_batched_by_autograd(v):  # for those of is_grads_batched a Function has no rule
            v = _Note.apply(v, ctx.note, *tensors)
        return v, None, *(None,) * len(tensors)

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: Any) -> Tensor:
        return dz.view_as(dz)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        return _Through.apply(*_in_front(info.batch_size, in_dims, inputs)), 0


class _Note(torch.autograd.Function):
    """(v, note, *tensors) -> v, which is noted as plain tensors, below all transforms."""

    @staticmethod
    def forward(v: Tensor, note: Callable[..., None], *tensors: Tensor) -> Tensor:
        systems = v.shape[:-1].numel()
        note(*(t.detach().reshape(systems, *t.shape[v.ndim - 1 :]) for t in (v, *tensors)))
        return v.view_as(v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.others = len(inputs) - 1

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        return v, *(None,) * ctx.others

    @staticmethod
    def jvp(ctx: Any, dv: Tensor, *_: Any) -> Tensor:
        return dv.view_as(dv)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        return _Note.apply(*_in_front(info.batch_size, in_dims, inputs)), 0


def _in_front(size: int, dims: tuple[int | None, ...], inputs: tuple[Any, ...]) -> list[Any]:
    """The tensors with the dimension of a vmap in front, also of those that did not carry it."""

    def moved(value: Any, dim: int | None) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)

    return [moved(value, dim) for value, dim in zip(inputs, dims, strict=True)]
