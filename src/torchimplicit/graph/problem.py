"""A problem whose function is a pure function of explicit tensors, solved while a graph is made."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from torchimplicit.condition import Condition, Flat
from torchimplicit.graph.loop import Operands
from torchimplicit.problem import Problem
from torchimplicit.products import Linearisation
from torchimplicit.solvers.equations import Equations


class Taken(NamedTuple):
    """The tensors of a function that is given all of them."""

    tensors: list[Tensor]


class TracedProblem(Problem):
    """Nothing need be recorded to know what the function depends on."""

    def of_all(self, z: Tensor, *tensors: Tensor) -> Tensor:
        """The flat value of the function at z (B, n)."""
        with self.autocast.restored():
            return self.value(self.fn(self.layout.argument(z), *tensors))

    def capture(self, z: Tensor) -> tuple[Any, Condition, Any, Linearisation | None]:
        """The condition, and its tensors."""
        return Taken(list(self.args)), Condition(self.of_all, self.kind), None, None

    def equations(self, z: Tensor) -> Equations:
        """Whose tensors may be named anew, as the body of a loop in the graph wants it."""
        operands = Operands(self.args)

        def function(z: Tensor) -> Tensor:
            return self.of_all(z, *operands.tensors)

        return Equations(function, self.kind, operands=operands)

    def watch(self, equations: Equations) -> None:
        """Nothing is seen of random numbers here: a function that draws any is refused when the graph is made."""
