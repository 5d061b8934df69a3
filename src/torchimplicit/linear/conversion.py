"""From whatever describes a matrix to a `LinearOperator`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.linear.dense import Dense
from torchimplicit.linear.foreign import Foreign
from torchimplicit.linear.matrix_free import MatrixFree
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.represented import is_represented, represented
from torchimplicit.linear.sparse import Sparse
from torchimplicit.linear.vectors import fit


def is_matrix(A: Any) -> bool:
    """Whether A is a matrix or an operator, of ours or of others, and no mere callable."""
    return isinstance(A, (LinearOperator, Tensor)) or is_represented(A) or hasattr(A, "tocoo") or hasattr(A, "rmatmat")


def as_operator(A: Any, like: Tensor | None = None) -> LinearOperator:
    """The operator that A describes.

    Args:
        A: a `LinearOperator` (returned as it is); a tensor (..., m, n); a 2-D sparse COO or CSR tensor; a sparse matrix or
            operator of SciPy, which is constant; an operator of ``linear_operator`` (GPyTorch's), in whose tensors it is
            differentiable; or a callable x -> A x (square; x has the shape of `like`, whose dimensions before the last then count
            as batch).
        like: a right-hand side b, (*lead, *batch_shape, m). Needed for a callable, otherwise a check.

    Raises:
        TypeError: A is none of these, or its dtype is not that of `like`.
        ValueError: a callable without `like`, or shapes of A and `like` that do not belong together.
    """
    if isinstance(A, LinearOperator):
        operator = A
    elif isinstance(A, Tensor):
        operator = Dense(A) if A.layout == torch.strided else Sparse(A)
    elif is_represented(A):
        operator = represented(A)
    elif hasattr(A, "tocoo"):  # a sparse matrix of SciPy
        operator = Sparse(A)
    elif hasattr(A, "rmatmat"):  # SciPy's operators
        operator = Foreign(A)
    elif callable(A):
        if like is None:
            raise ValueError("A is a callable and says nothing of its size; pass like=b, or a MatrixFree(A, n=...)")
        if like.ndim == 0:
            raise ValueError("the right-hand side is a 0-d tensor; expected (..., n): pass b.unsqueeze(-1)")
        return MatrixFree(A, n=like.shape[-1], batch_shape=like.shape[:-1], dtype=like.dtype, device=like.device)
    else:
        raise TypeError(
            f"A is a {type(A).__name__}; expected a tensor (..., n, n), a sparse tensor, a LinearOperator, a "
            "sparse matrix or operator of SciPy, an operator of linear_operator, or a callable x -> A x"
        )
    if like is not None:
        fit(like, operator.batch_shape, operator.shape[-2], operator.dtype, name="b")
    return operator
