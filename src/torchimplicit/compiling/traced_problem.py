"""A problem whose function is a pure function of explicit tensors, solved while a graph is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.products import Linearisation
from torchimplicit.autograd.transforms import tracing
from torchimplicit.condition import Condition
from torchimplicit.graph.explicit import Call, Explicit
from torchimplicit.graph.loop import Operands
from torchimplicit.graph.randomness import random_numbers_refused
from torchimplicit.graph.reports import reported
from torchimplicit.layout import Layout
from torchimplicit.loop.search import Inside
from torchimplicit.problem import Problem
from torchimplicit.solution import SolveStats
from torchimplicit.solvers.equations import Equations


class Taken(NamedTuple):
    """The tensors of a function that is given all of them."""

    tensors: list[Tensor]


def _at(layout: Layout, z: Tensor) -> Layout:
    """The layout with sizes that are those of z (B, n), where they are no constants: others have no name in the body of a loop."""
    if all(isinstance(size, int) for shape in layout.shapes for size in shape):
        return layout
    batch = _sizes(layout.batch_shape, z.shape[0])
    if len(layout.shapes) > 1:
        events = [tuple(int(size) for size in shape[len(batch) :]) for shape in layout.shapes]
    else:
        parts = 2 if layout.dtype.is_complex else 1
        events = [_sizes(layout.shapes[0][len(batch) :], z.shape[1] // parts)]
    shapes: Any = tuple((*batch, *event) for event in events)
    like_a_size: Any = batch
    return replace(layout, shapes=shapes, batch_shape=like_a_size)


def _sizes(shape: Sequence[Any], total: Any) -> tuple[Any, ...]:
    """A shape of so many entries, in which the first size that is no constant follows from the others."""
    unknown = [i for i, size in enumerate(shape) if not isinstance(size, int)]
    sizes = [size if isinstance(size, int) or i in unknown[:1] else int(size) for i, size in enumerate(shape)]
    for i in unknown[:1]:
        sizes[i] = total // math.prod(size for k, size in enumerate(sizes) if k != i)
    return tuple(sizes)


class TracedProblem(Problem):
    """Nothing need be recorded to know what the function depends on.

    fn : the user's function, as :class:`torchimplicit.graph.explicit.Explicit`.
    """

    fn: Explicit

    def of_all(self, z: Tensor, *tensors: Tensor) -> Tensor:
        """The flat value of the function at z (B, n)."""
        return self._of(self.fn.call, z, tensors)

    def _of(self, call: Call, z: Tensor, tensors: Sequence[Any]) -> Tensor:
        here = replace(self, layout=_at(self.layout, z))
        with self.autocast.restored():
            return here.value(here.fn.of(call, here.layout.argument(z), *tensors))

    def capture(self, z: Tensor) -> tuple[Any, Condition, Any, Linearisation | None]:
        """The condition, and its tensors."""
        out = (None, self.aux(z)) if self.has_aux else None
        return Taken(list(self.args)), Condition(self.of_all, self.kind, call=self.fn.call), out, None

    def equations(self, z: Tensor) -> Equations:
        """Whose tensors may be named anew, as the body of a loop in the graph wants it. What does not depend on z is computed once."""
        with torch.no_grad(), self.autocast.restored():
            known, rest = self.fn.call.hoisted()
        with random_numbers_refused(self.kind.name), torch.no_grad():
            self.of_all(z, *self.args)
        operands = Operands((*self.args, *known), rest)

        def function(z: Tensor) -> Tensor:
            tensors = operands.tensors
            rest.known = dict(zip(rest.known, tensors[len(self.args) :], strict=True))
            return self._of(rest, z, tensors[: len(self.args)])

        return Equations(function, self.kind, operands=operands)

    def find(
        self, z0: Tensor, equations: Equations, inside: Inside | None = None
    ) -> tuple[Tensor, SolveStats, tuple[Tensor, ...]]:
        """The solution; its failures are reported when the graph runs."""
        z, facts, inverse = super().find(z0, equations, inside)
        if tracing():
            z = reported(
                z,
                facts.status,
                facts.error,
                self.tolerance.largest(z, z)[1],
                facts.steps,
                self.kind.name,
                self.on_failure,
            )
        return z, facts, inverse

    def watch(self, equations: Equations) -> None:
        """Nothing is seen of random numbers here: a function that draws any is refused when the graph is made."""
