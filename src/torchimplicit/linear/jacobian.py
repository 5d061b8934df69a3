"""The Jacobian of a function at a point, as an operator: linearised once, then only products."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from torchimplicit.autograd.products import Linearisation
from torchimplicit.autograd.transforms import no_more_than, tracing
from torchimplicit.graph.hoisting import hoisted
from torchimplicit.graph.loop import Operands, mapped
from torchimplicit.graph.sweeps import sweeping
from torchimplicit.linear.memory import Memory
from torchimplicit.linear.operators import LinearOperator

SWEEP_ENTRIES = 2**24  # of the cotangents in one batched sweep: bounds the memory of `to_dense`

ONE_BY_ONE = 16  # so many products that cannot be one sweep are written out in a graph; more are a loop in it, for so many at a time


def memory_of(operator: LinearOperator) -> Memory | None:
    """What is known of matrices like it, if there is anything to know."""
    return operator.memory if isinstance(operator, Jacobian) else None


class _Moved(Operands):
    def __init__(self, jacobian: Jacobian, of_g: Operands | None) -> None:
        super().__init__((jacobian.z,), outer=of_g)
        self.jacobian = jacobian

    def _name(self, names: Sequence[Any]) -> None:
        super()._name(names)
        self.jacobian.move(self.tensors[0])


class Jacobian(LinearOperator):
    """∂g/∂z at z, for g: (*batch_shape, n) -> (*batch_shape, m) whose rows are independent of each other.

    Attributes:
        g, z, value: the function, the point, and g(z).
        products: how many products were taken so far (a dense matrix counts one for each row).

    With grad mode on, all products can be differentiated again. A ``linearisation`` of g in z that is already at hand is
    used as it is; where the ``value`` is, g is linearised when the first product is asked for. ``memory``: what is known of Jacobians
    like this one, if there is anything to know.
    """

    def __init__(
        self,
        g: Callable[[Tensor], Tensor],
        z: Tensor,
        *,
        symmetric: bool = False,
        positive_definite: bool = False,
        linearisation: Linearisation | None = None,
        value: Tensor | None = None,
        of_g: Operands | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.g, self.z, self._given, self._of_g = g, z, linearisation, of_g
        self.value = self._linearisation.value if value is None else value
        self.products = 0
        self.memory = memory
        shape = (*z.shape[:-1], self.value.shape[-1], z.shape[-1])
        super().__init__(shape, z.dtype, z.device, symmetric=symmetric, positive_definite=positive_definite)

    @cached_property
    def _linearisation(self) -> Linearisation:
        return Linearisation(self.g, (self.z,)) if self._given is None else self._given

    def moved(self, z: Tensor) -> Jacobian:
        """That of the same function at another z."""
        return Jacobian(self.g, z, symmetric=self.symmetric, memory=self.memory)

    @property
    def operands(self) -> Operands:
        """z and what g uses."""
        return _Moved(self, self._of_g)

    def move(self, z: Tensor) -> None:
        """Linearise anew at z, which is the same under another name."""
        self.z, self._given = z, None
        self.__dict__.pop("_linearisation", None)

    def count(self, products: int) -> None:
        """Take note of products."""
        self.products += products

    def matvec(self, x: Tensor) -> Tensor:
        """∂g/∂z x, the derivative of the pullback; of a symmetric one the pullback itself."""
        if self.symmetric:
            return self.rmatvec(x)
        self.count(1)
        return self._push(x)

    def rmatvec(self, y: Tensor) -> Tensor:
        """(∂g/∂z)ᵀ y, one vector-Jacobian product."""
        self.count(1)
        return self._pull(y)

    def to_dense(self) -> Tensor:
        """(*batch_shape, m, n): sweeps of one-hot vectors give one row, or one column where these are fewer, of every matrix
        of the batch at a time."""
        m, n = self.shape[-2:]
        if not m * self.z.numel():
            return self.z.new_zeros(self.shape)
        return self._swept(n, False).movedim(0, -1) if n < m else self._swept(m, True).movedim(0, -2)

    def sweep(self, vectors: Tensor, adjoint: bool) -> Tensor:
        """The products with many vectors (k, *batch_shape, n), in one batched sweep where g allows that."""
        self.count(len(vectors))
        many = self._linearisation.pull_batch if adjoint else self._linearisation.push_batch
        # An operation in g may have no rule for it, or one that will not do. A real fault is raised again below.
        with suppress(RuntimeError), sweeping():
            return many(vectors)
        if tracing() and len(vectors) > ONE_BY_ONE:
            return self._in_a_loop(vectors, adjoint)
        one = self._pull if adjoint else self._push
        return torch.stack([one(v) for v in vectors])

    def _in_a_loop(self, vectors: Tensor, adjoint: bool) -> Tensor:
        missing = -len(vectors) % ONE_BY_ONE
        parts = torch.cat([vectors, vectors.new_zeros(missing, *vectors.shape[1:])]).unflatten(0, (-1, ONE_BY_ONE))
        own = self.operands

        def products(part: Tensor, *names: Any) -> Tensor:
            with own.named(names):
                one = self._pull if adjoint else self._push
                return torch.stack([one(v) for v in part])

        product, known = hoisted(products, parts[0], own.all)
        return mapped(product, parts, known).flatten(0, 1)[: len(vectors)]

    def _swept(self, size: int, adjoint: bool) -> Tensor:
        size = int(size)  # in a graph, where sizes may change, that of a matrix does not
        if size == 1:
            self.count(1)
            unit = torch.ones((), dtype=self.dtype, device=self.device).expand(*self.batch_shape, 1)
            return (self._pull(unit) if adjoint else self._push(unit)).unsqueeze(0)
        eye = torch.eye(size, dtype=self.dtype, device=self.device)
        vectors = eye.reshape(size, *(1,) * len(self.batch_shape), size).expand(size, *self.batch_shape, size)
        each = math.prod(self.batch_shape) * max(self.shape[-2:])
        if no_more_than(each * size, SWEEP_ENTRIES):
            return self.sweep(vectors, adjoint)
        return torch.cat([self.sweep(part, adjoint) for part in vectors.split(max(1, SWEEP_ENTRIES // each))])

    def _push(self, x: Tensor) -> Tensor:
        return self._linearisation.push((x,))

    def _pull(self, y: Tensor) -> Tensor:
        (x,) = self._linearisation.pull(y)
        return torch.zeros_like(self.z) if x is None else x


class Damped(Jacobian):
    """J + c I for numbers c, (*batch_shape): the Jacobian of g(z) + c z, from the same evaluation of g. What is known of matrices like
    J is taken for known of it."""

    def __init__(self, jacobian: Jacobian, c: Tensor) -> None:
        self.of, self.c = jacobian, c.unsqueeze(-1)
        super().__init__(
            lambda z: jacobian.g(z) + self.c * z,
            jacobian.z,
            symmetric=jacobian.symmetric,
            value=jacobian.value,
            memory=jacobian.memory,
        )

    def count(self, products: int) -> None:
        self.of.count(products)

    def sweep(self, vectors: Tensor, adjoint: bool) -> Tensor:
        return self.of.sweep(vectors, adjoint) + self.c * vectors

    def _push(self, x: Tensor) -> Tensor:
        return self.of._push(x) + self.c * x

    def _pull(self, y: Tensor) -> Tensor:
        return self.of._pull(y) + self.c * y
