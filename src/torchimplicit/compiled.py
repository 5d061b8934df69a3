"""``compile=True``: the residual and its Jacobian, each one kernel made by torch.compile, for the evaluations of a solve.

What is differentiated is the user's own function, in plain PyTorch. A kernel is made for a function's code once, and by
torch.compile anew for what its guards see change: dtypes, shapes (a second size makes them symbolic), plain numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from torchimplicit.condition import Flat, Kind
from torchimplicit.linear.jacobian import SWEEP_ENTRIES, Jacobian
from torchimplicit.products import Linearisation
from torchimplicit.solvers.equations import Equations

Part = Callable[[Flat, Tensor], Tensor]


class Source(NamedTuple):
    """The user's function, and how it is made one of flat unknowns."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    argument: Callable[[Tensor], Any]
    output: Callable[[Any], Tensor]
    has_aux: bool

    def flat(self, z: Tensor) -> Tensor:
        out = self.fn(self.argument(z), *self.args)
        return self.output(out[0] if self.has_aux else out)


class CompiledEquations(Equations):
    """Equations whose residuals and dense Jacobians are kernels. Products with a Jacobian are taken in plain PyTorch."""

    def __init__(self, source: Source, kind: Kind, plain: Flat) -> None:
        super().__init__(plain, kind)
        self._source = source

    def residual(self, z: Tensor) -> Tensor:
        self.evaluations += 1
        return _kernels(self._source.fn).value(self.kind.residual, self._source, z)

    def squares(self, z: Tensor) -> Tensor:
        self.evaluations += 1
        return _kernels(self._source.fn).value(self.kind.squares, self._source, z)

    def objective_and_jacobian(self, z: Tensor) -> tuple[Tensor, Jacobian]:
        """Both; here the objective is an evaluation of its own."""
        return self.objective(z).detach(), self._linearised(self.kind.gradient, z, self.kind.minimised)

    def _linearised(self, part: Part, z: Tensor, symmetric: bool) -> Jacobian:
        self.evaluations += 1
        return _CompiledJacobian(self, self._source, part, partial(part, self._f), z, symmetric)


class _CompiledJacobian(Jacobian):
    def __init__(
        self, equations: Equations, source: Source, part: Part, plain: Flat, z: Tensor, symmetric: bool
    ) -> None:
        self._equations, self._source, self._part = equations, source, part
        super().__init__(plain, z, symmetric=symmetric, value=_kernels(source.fn).value(part, source, z))

    def count(self, products: int) -> None:
        super().count(products)
        self._equations.products += products

    def to_dense(self) -> Tensor:
        if self.shape.numel() > SWEEP_ENTRIES:
            return super().to_dense()
        self.count(self.shape[-2])
        return _kernels(self._source.fn).matrix(self._part, self._source, self._z)


class _Kernels(NamedTuple):
    value: Callable[[Part, Source, Tensor], Tensor]
    matrix: Callable[[Part, Source, Tensor], Tensor]


_made: WeakKeyDictionary[Any, _Kernels] = WeakKeyDictionary()


def _kernels(fn: Any) -> _Kernels:
    """Those for the code of ``fn``: a lambda that is written once and made at every call has one."""
    while isinstance(fn, partial):
        fn = fn.func
    key = getattr(getattr(fn, "__func__", fn), "__code__", fn)
    if key not in _made:
        _made[key] = _Kernels(_compiled(_value), _compiled(_matrix))
    return _made[key]


def _compiled(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A kernel with code of its own: torch.compile gives up on code that it has compiled for too many functions."""
    assert isinstance(kernel, FunctionType)
    own = FunctionType(kernel.__code__.replace(), kernel.__globals__, kernel.__name__)
    compiled: Callable[..., Tensor] = torch.compile(own)
    return compiled


def _value(part: Part, source: Source, z: Tensor) -> Tensor:
    return part(source.flat, z)


def _matrix(part: Part, source: Source, z: Tensor) -> Tensor:
    at = Linearisation(lambda z: part(source.flat, z), (z,))
    m = at.value.shape[-1]
    eye = torch.eye(m, dtype=z.dtype, device=z.device)
    return at.pull_batch(eye.unsqueeze(1).expand(m, z.shape[0], m)).movedim(0, 1)
