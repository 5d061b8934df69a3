"""The user's function, as the operator of a solve is given it: a pure function of z and explicit tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

FACTS = 6  # numbers of a solution: status, steps, residual, error, evaluations, products


class Call:
    """The subgraph as a pure function of tensors; sizes that are no constants are among its operands too."""

    def __init__(self, function: Callable[..., Any], operands: tuple[Any, ...]) -> None:
        self.function = function
        self.places = [i for i, operand in enumerate(operands) if not isinstance(operand, Tensor)]
        self.sizes = [operands[i] for i in self.places]
        self.tensors = [operand for operand in operands if isinstance(operand, Tensor)]

    def __call__(self, *tensors: Tensor) -> tuple[Any, ...]:
        full: list[Any] = list(tensors)
        for i, size in zip(self.places, self.sizes, strict=True):
            full.insert(i, size)
        return tuple(self.function(*full))


class Explicit:
    """The user's function as a pure function of z and explicit tensors."""

    def __init__(self, call: Call, unknowns: int, has_aux: bool, like_z: bool) -> None:
        self.call, self.unknowns, self.has_aux = call, unknowns, has_aux
        self.values = unknowns if like_z else 1

    def __call__(self, z: Any, *tensors: Tensor) -> Any:
        leaves = [z] if isinstance(z, Tensor) else z
        results = self.call(*leaves, *tensors)[self.unknowns + FACTS :]
        values, aux = list(results[: self.values]), results[self.values :]
        out = values[0] if self.values == 1 and isinstance(z, Tensor) or self.values == 1 else values
        return (out, aux) if self.has_aux else out
