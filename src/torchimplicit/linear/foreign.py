"""Operators of SciPy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.linear.external import applied
from torchimplicit.linear.operators import LinearOperator


class Foreign(LinearOperator):
    """An operator of ``scipy.sparse.linalg``, (m, n), constant and on the CPU: what it is made of has no gradient, vectors have."""

    leading = True

    def __init__(self, operator: Any) -> None:
        dtype = torch.float64 if operator.dtype is None else torch.as_tensor(operator.dtype.type(0)).dtype
        super().__init__(operator.shape, dtype, torch.device("cpu"))
        self.operator = operator

    def matvec(self, x: Tensor) -> Tensor:
        return applied(self._products, x, False)

    def rmatvec(self, y: Tensor) -> Tensor:
        return applied(self._products, y, True)

    def _products(self, x: Tensor, adjoint: bool) -> Tensor:
        product = self.operator.rmatmat if adjoint else self.operator.matmat
        columns = x.reshape(-1, x.shape[-1]).resolve_conj().detach().numpy().T
        return torch.as_tensor(product(columns)).to(x.dtype).mT.reshape(*x.shape[:-1], -1)
