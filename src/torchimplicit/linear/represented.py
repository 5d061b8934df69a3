"""Operators of the package ``linear_operator``, GPyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from torchimplicit.linear.dense import Dense
from torchimplicit.linear.diagonal import Diagonal
from torchimplicit.linear.kronecker import Kronecker
from torchimplicit.linear.low_rank import LowRankUpdate
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.triangular import Triangular
from torchimplicit.linear.vectors import from_columns, lead_shape, to_columns
from torchimplicit.private.autograd import version


class Represented(LinearOperator):
    """An operator of ``linear_operator``, real, by the tensors that represent it, in which its products are differentiable: as often
    as the operations of its class are, and under the transforms that these know.

    Args:
        A: the operator; or with a ``tree`` the tensors of one.
        tree: makes the operator of its tensors, as its ``representation_tree()`` does.
        symmetric, positive_definite: promises. Theirs make none, so that of a kernel matrix plus noise this one is worth making:
            ``Represented(K, positive_definite=True)`` is solved by conjugate gradients.

    Raises:
        TypeError: A is not made of tensors, or interpolates with weights that need a gradient, of which their sparse products would
            lose the second derivative.
    """

    explicit = True
    leading = True
    parts = ("tensors",)
    options = ("tree", "symmetric", "positive_definite")

    def __init__(
        self,
        tensors: Any,
        tree: Callable[..., Any] | None = None,
        symmetric: bool = False,
        positive_definite: bool = False,
    ) -> None:
        if tree is None:
            tensors, tree = _read(tensors)
        self.tensors, self.tree = tuple(tensors), tree
        self._kept: tuple[Any, ...] = ()
        facts = {"symmetric": symmetric, "positive_definite": positive_definite}
        made = self._made()
        super().__init__(made.shape, made.dtype, made.device or torch.device("cpu"), **facts)

    def _made(self) -> Any:
        """The operator. What it remembers to have computed of its tensors is good for products that are not recorded, as long as the
        tensors stay as they are."""
        if torch.is_grad_enabled():
            return self.tree(*self.tensors)
        versions = tuple(map(version, self.tensors))
        if not self._kept or self._kept[1] != versions:
            self._kept = self.tree(*self.tensors), versions
        return self._kept[0]

    def matvec(self, x: Tensor) -> Tensor:
        return self._product(self._made()._matmul, x)

    def rmatvec(self, y: Tensor) -> Tensor:
        return self._product(self._made()._t_matmul, y)

    def _product(self, product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Their functions for subclasses are torch's operations; those for users are not known to all transforms."""
        return from_columns(product(to_columns(x, self.batch_shape)), lead_shape(x, self.batch_shape))


def is_represented(A: Any) -> bool:
    """Whether A is an operator of that package."""
    return hasattr(A, "representation_tree")


def represented(A: Any) -> LinearOperator:
    """The operator: one with a direct solve where A is dense, diagonal (and a low rank), triangular, or a Kronecker product."""
    from linear_operator import operators as theirs

    if isinstance(A, theirs.DiagLinearOperator):
        return Diagonal(A.diagonal())
    if isinstance(A, theirs.TriangularLinearOperator):
        return Triangular(A.to_dense(), A.upper)
    if isinstance(A, theirs.DenseLinearOperator):
        return Dense(A.to_dense())
    if isinstance(A, theirs.KroneckerProductLinearOperator):
        return reduce(Kronecker, map(represented, A.linear_ops))
    if isinstance(A, theirs.LowRankRootAddedDiagLinearOperator):
        diagonal, low = sorted(A.linear_ops, key=lambda part: not isinstance(part, theirs.DiagLinearOperator))
        U = low.root.to_dense()
        return LowRankUpdate(Diagonal(diagonal.diagonal().expand(U.shape[:-1])), U)
    return Represented(A)


def _read(A: Any) -> tuple[tuple[Tensor, ...], Callable[..., Any]]:
    """The tensors of an operator, and what makes it of them."""
    if _interpolates(A):
        raise TypeError(
            f"A is a {type(A).__name__} that interpolates with weights that need a gradient; detach them, or pass A.to_dense()"
        )
    try:
        return A.representation(), A.representation_tree()
    except RuntimeError as error:
        raise TypeError(
            f"A is a {type(A).__name__} that is not made of tensors ({error}); pass A.to_dense()"
        ) from error


def _interpolates(A: Any) -> bool:
    weights = (getattr(A, side, None) for side in ("left_interp_values", "right_interp_values"))
    return any(w is not None and w.requires_grad for w in weights) or any(map(_interpolates, getattr(A, "_args", ())))
