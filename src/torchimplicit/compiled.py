"""``compile=True``: what a solve evaluates as kernels of torch.compile, made of the graph of the user's function.

The graph is read once for a function's code, and anew for what Dynamo's guards see change: dtypes, shapes, plain numbers. A
kernel is made of it when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from torchimplicit.condition import Flat
from torchimplicit.graphs import FlatGraph, Kernel
from torchimplicit.linear.jacobian import SWEEP_ENTRIES, Jacobian
from torchimplicit.solvers.equations import Equations

Part = Callable[[Flat, Tensor], Tensor]


class CompiledEquations(Equations):
    """Equations whose residuals and dense Jacobians are kernels. Products with a Jacobian are taken in plain PyTorch."""

    def __init__(self, graph: FlatGraph, plain: Flat) -> None:
        super().__init__(plain, graph.kind)
        self.graph = graph
        self._tensors = [tensor.detach() for tensor in graph.tensors]

    def residual(self, z: Tensor) -> Tensor:
        self.evaluations += 1
        return self.value(self.kind.residual, z)

    def squares(self, z: Tensor) -> Tensor:
        self.evaluations += 1
        return self.value(self.kind.squares, z)

    def objective_and_jacobian(self, z: Tensor) -> tuple[Tensor, Jacobian]:
        """Both; here the objective is an evaluation of its own."""
        return self.objective(z).detach(), self._linearised(self.kind.gradient, z, self.kind.minimised)

    def value(self, part: Part, z: Tensor) -> Tensor:
        """A part of the kind, (residual, squares, gradient), at z."""
        kernel = self._kernel("value", part, z, lambda z, *tensors: part(self.graph.at(tensors), z))
        return part(self._f, z) if kernel is None else kernel(z.contiguous(), *self._tensors)

    def matrix(self, part: Part, z: Tensor) -> Tensor | None:
        """The dense Jacobian of a part, (B, m, n); None where there is no kernel for it."""

        def dense(z: Tensor, *tensors: Tensor) -> Tensor:
            return Jacobian(lambda z: part(self.graph.at(tensors), z), z).to_dense()

        kernel = self._kernel("matrix", part, z, dense)
        return None if kernel is None else kernel(z.contiguous(), *self._tensors)

    def _kernel(self, name: str, part: Part, z: Tensor, function: Callable[..., Tensor]) -> Kernel | None:
        if torch.is_grad_enabled():  # a kernel has no derivative
            return None
        return self.graph.kernel((name, part.__name__), function, [z.contiguous()])

    def _linearised(self, part: Part, z: Tensor, symmetric: bool) -> Jacobian:
        self.evaluations += 1
        return _CompiledJacobian(self, part, partial(part, self._f), z, symmetric)


class _CompiledJacobian(Jacobian):
    def __init__(self, equations: CompiledEquations, part: Part, plain: Flat, z: Tensor, symmetric: bool) -> None:
        self._equations, self._part = equations, part
        super().__init__(plain, z, symmetric=symmetric, value=equations.value(part, z))

    def count(self, products: int) -> None:
        super().count(products)
        self._equations.products += products

    def to_dense(self) -> Tensor:
        matrix = None if self.shape.numel() > SWEEP_ENTRIES else self._equations.matrix(self._part, self.z)
        if matrix is None:
            return super().to_dense()
        self.count(min(self.shape[-2:]))
        return matrix
