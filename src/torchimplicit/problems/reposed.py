"""Linear systems that have no unique solution of their own, posed as regular ones whose solution is the shortest or the nearest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import values_hidden
from torchimplicit.layout import describe
from torchimplicit.linear import LinearOperator, LowRankUpdate
from torchimplicit.linear.augmented import Augmented
from torchimplicit.linear.vectors import unpatterned

NullSpace = Tensor | Sequence[Tensor]


class Reposed(NamedTuple):
    """A regular system, and which of its unknowns are those of the original."""

    operator: LinearOperator
    b: Tensor
    unknowns: slice


def shortest(operator: LinearOperator, b: Tensor) -> Reposed:
    """The system of the z with the smallest ‖A z − b‖; where A has more columns than rows, of the shortest z with A z = b."""
    m, n = operator.shape[-2:]
    b = b.expand(*torch.broadcast_shapes(operator.batch_shape, b.shape[:-1]), m)
    zeros = torch.zeros((*b.shape[:-1], n), dtype=b.dtype, device=b.device)
    if m >= n:
        return Reposed(Augmented(operator), torch.cat([b, zeros], -1), slice(m, None))
    return Reposed(Augmented(operator.H), torch.cat([zeros, b], -1), slice(0, n))


def beside_null_space(operator: LinearOperator, b: Tensor, null_space: NullSpace) -> Reposed:
    """The system of the shortest z with the smallest ‖A z − b‖, for a square A whose null spaces are known.

    With orthonormal bases V of that of A, and W of that of Aᴴ, A + c W Vᴴ is regular, and its solution for the part of b in the
    range of A has no part in V. The number c makes the two terms of one size.

    Raises:
        ValueError: the null space of Aᴴ is not given and A is not promised to be symmetric, shapes do not fit, or A V is not 0.
    """
    if not isinstance(null_space, Tensor) and not _is_pair(null_space):
        raise TypeError(f"null_space= is a tensor V, or a pair of tensors (V, W); got {describe(null_space)}.")
    V, W = (null_space, None) if isinstance(null_space, Tensor) else null_space
    if W is None and not operator.symmetric:
        raise ValueError(
            "null_space= is that of A alone: give that of its adjoint too, null_space=(V, W) with A V = 0 and Aᴴ W = 0, or "
            "promise that A is symmetric (ti.linear.Sparse(A, symmetric=True), for example)"
        )
    V = _basis(V, operator, b)
    W = None if W is None else _basis(W, operator, b)
    if W is not None and W.shape != V.shape:
        raise ValueError(f"null_space=(V, W): both have as many vectors; got {tuple(V.shape)} and {tuple(W.shape)}")
    left = V if W is None else W
    with torch.no_grad():
        x = unpatterned(left[..., 0].real).to(b.dtype)
        sizes = [torch.linalg.vector_norm(v, dim=-1) for v in (operator.apply(x), x)]
        _check_promise(operator, V, sizes[0] / sizes[1], "A V")
        if W is not None:
            _check_promise(operator.H, W, sizes[0] / sizes[1], "Aᴴ W")
        c = (sizes[0] / sizes[1]).clamp(min=torch.finfo(b.dtype).tiny).sqrt()[..., None, None]
    b = b - (left @ (left.mH @ b.unsqueeze(-1))).squeeze(-1)
    return Reposed(LowRankUpdate(operator, c * left, None if W is None else c * V), b, slice(None))


def _is_pair(given: object) -> bool:
    return isinstance(given, Sequence) and len(given) == 2 and all(isinstance(part, Tensor) for part in given)


def _check_promise(operator: LinearOperator, V: Tensor, size: Tensor, product: str) -> None:
    """Raise unless the operator, of about that ``size``, makes 0 of the basis; inside a transform, where no value is seen, never."""
    if values_hidden():
        return
    off = torch.linalg.vector_norm(operator.apply(V.movedim(-1, 0)), dim=-1).amax(0)
    if bool((off > torch.finfo(V.dtype).eps ** 0.5 * size).any()):
        raise ValueError(
            f"null_space= is not that of A: {product} has numbers of {float(off.max()):.2g}, beside {float(size.max()):.2g} of A. "
            "Give vectors that A makes 0, none of them 0 itself, and of Aᴴ likewise; a regular A has none."
        )


def _basis(V: Tensor, operator: LinearOperator, b: Tensor) -> Tensor:
    """An orthonormal basis (*batch_shape, n, k)."""
    V = V.unsqueeze(-1) if V.ndim == 1 else V
    n = operator.shape[-1]
    if V.ndim < 2 or V.shape[-2] != n or V.dtype != b.dtype:
        raise ValueError(
            f"null_space= has a basis of shape {tuple(V.shape)} and dtype {V.dtype}; expected (n,) or (..., n, k) with n = {n}, "
            f"of dtype {b.dtype}"
        )
    return torch.linalg.qr(V).Q.expand(*operator.batch_shape, n, V.shape[-1])
