"""Layout of vectors: (*lead, *batch_shape, n), where `lead` counts several vectors for the same batch of operators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def lead_shape(x: Tensor, batch_shape: Sequence[int]) -> torch.Size:
    """The leading dimensions of x (*lead, *batch_shape, n)."""
    return x.shape[: x.ndim - 1 - len(batch_shape)]


def to_columns(x: Tensor, batch_shape: Sequence[int]) -> Tensor:
    """(*lead, *batch_shape, n) -> (*batch_shape, n, L), so that one matrix serves all L = prod(lead) vectors."""
    if x.ndim == 1 + len(batch_shape):
        return x.unsqueeze(-1)
    return x.flatten(0, x.ndim - 2 - len(batch_shape)).movedim(0, -1)


def from_columns(columns: Tensor, lead: Sequence[int]) -> Tensor:
    """(*batch_shape, n, L) -> (*lead, *batch_shape, n): the inverse of `to_columns`."""
    if not lead:
        return columns.squeeze(-1)
    return columns.movedim(-1, 0).unflatten(0, tuple(lead))


def fit(x: Tensor, batch_shape: Sequence[int], n: int, dtype: torch.dtype, *, name: str) -> Tensor:
    """x as a vector (*lead, *batch_shape, n): checked, missing or single batch dimensions expanded (without a copy).

    Raises:
        TypeError: x is not a tensor of `dtype`.
        ValueError: the shape of x does not fit.
    """
    if isinstance(x, Tensor) and x.dtype == dtype and x.shape == (*batch_shape, n):
        return x
    wanted = f"(..., {', '.join(str(k) for k in (*batch_shape, n))})"
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; expected a tensor of shape {wanted}")
    if x.dtype != dtype:
        raise TypeError(f"{name} has dtype {x.dtype} but the operator has {dtype}; convert one: {name}.to({dtype})")
    problem = ""
    if x.ndim == 0 or x.shape[-1] != n:
        problem = f"its last dimension must have size {n}"
        if x.ndim > 1 and x.shape[-2] == n:
            problem += f"; several vectors lie along leading dimensions, so pass {name}.mT instead of columns"
    else:
        try:
            shape = torch.broadcast_shapes(x.shape[:-1], tuple(batch_shape))
        except RuntimeError:
            problem = f"its dimensions before the last must end with the operator's batch shape {tuple(batch_shape)}"
        else:
            if shape[len(shape) - len(batch_shape) :] == tuple(batch_shape):
                return x.expand(*shape, n)
            problem = (
                f"the operator's batch shape {tuple(batch_shape)} has single dimensions where {name} has more; "
                "drop them from the operator (further leading dimensions of a vector are free)"
            )
    raise ValueError(f"{name} has shape {tuple(x.shape)}; expected {wanted}: {problem}")


def times(A: Tensor, x: Tensor) -> Tensor:
    """A x for matrices (..., m, n) and vectors (..., n); a single matrix serves all vectors in one product."""
    return x @ A.mT if A.ndim == 2 else (A @ x.unsqueeze(-1)).squeeze(-1)


def unpatterned(like: Tensor) -> Tensor:
    """Vectors (..., n) of fixed numbers between 1 and 2 that no simple null vector, such as (1, -1), is orthogonal to."""
    golden = torch.arange(1, like.shape[-1] + 1, dtype=like.dtype, device=like.device) * 0.6180339887498949
    return (1 + golden.frac()).expand(like.shape)
