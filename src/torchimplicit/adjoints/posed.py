"""The linear system of a derivative: how it is posed, what is asked of its solution, and what was found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.adjoints.at_solution import LinearSolution
from torchimplicit.autograd.products import Linearisation
from torchimplicit.condition import Condition, Kind
from torchimplicit.graph.loop import Operands
from torchimplicit.linear import LinearResult
from torchimplicit.linear.iteration import tolerance
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.memory import Memory
from torchimplicit.linear.shared_inverse import SharedFactors
from torchimplicit.linear.solver import Left, LinearSolver, Preconditioner, Refusing
from torchimplicit.status import OnFailure, Status
from torchimplicit.tolerance import Tolerance


class Derivative(Kind):
    """The condition of a derivative: A w − b."""

    name = "derivative"


@dataclass(frozen=True)
class LinearSettings:
    """How the linear systems of a derivative are solved, and what is done when that fails.

    forgiving : whether a system that only rounding keeps from its tolerance counts as solved.
    inverse : rebuilds the forward solver's approximate inverse of ∂g/∂z from its tensors.
    inverse_is_earlier : whether that is of the Jacobian at a z that was farther from the root.
    try_plain_steps : whether ∂g/∂z may be the identity less a contraction, or the forward solver has taken it for that.
    tolerance : of the forward solve: the error that z may have.
    memory : what is known of the Jacobians of the condition: of the forward solve, say, the factors.
    """

    solver: LinearSolver | None
    rtol: float
    atol: float
    max_steps: int | None
    forgiving: bool
    on_failure: OnFailure
    inverse: Callable[[Sequence[Tensor]], Left]
    inverse_is_earlier: bool
    try_plain_steps: bool
    tolerance: Tolerance
    memory: Memory | None = None

    def limit(self, b: Tensor) -> Tensor:
        """The residual norms (B,) with which A w = b counts as solved."""
        return tolerance(torch.linalg.vector_norm(b, dim=-1), self.rtol, self.atol)


@dataclass(frozen=True)
class Posed:
    """A w = b with A = ∂g/∂z at z, or its ``transpose``.

    base : the condition g; ``tensors`` are those that it takes after z.
    b, z : (B, n).
    inverse : the forward solver's, if it left one.
    """

    base: Condition
    transpose: bool
    settings: LinearSettings
    b: Tensor
    z: Tensor
    inverse: Tiled | None
    tensors: tuple[Tensor, ...]

    def operator(self, linearisation: Linearisation | None = None) -> Jacobian:
        """A, or what A is the transpose of; from a linearisation of g in z, or from one evaluation of g."""
        kind, of_g = self.base.kind, Operands(self.tensors, self.base.call)
        return Jacobian(
            lambda z: self.base(z, *of_g.tensors),
            self.z,
            symmetric=kind.symmetric,
            positive_definite=kind.positive_definite,
            linearisation=linearisation,
            of_g=of_g,
            memory=None if self.settings.memory is None else self.settings.memory.fork(),
        )

    def solution(self, operator: Jacobian, w: Tensor) -> LinearSolution:
        """A solution w, as it is looked at."""
        permitted = partial(self.base.permitted, tensors=self.tensors)
        earlier: Preconditioner | None = self.inverse if self.settings.inverse_is_earlier else None
        memory = self.settings.memory
        if (
            memory is not None and memory.cheap and memory.serves(self.b)
        ):  # the forward's factors, made before it got to z
            earlier = memory
        tolerance, near_identity = self.settings.tolerance, self.base.kind.near_identity
        return LinearSolution(operator, self.b, w, self.transpose, tolerance, permitted, near_identity, earlier)


class Found(NamedTuple):
    """What was found of A w = b.

    causes : for which systems (B,) what is the matter, the later the graver, beside what the result says of itself.
    evaluations, products : of g, and with A. The evaluation that the forward solve has recorded counts here, where this starts from it;
        the last product of a backward, and that of a look at z*, do not.
    expected : whether a solution is; not of a series that its user has cut off.
    inaccurate : what is said of systems whose derivative is that of another point.
    """

    result: LinearResult
    causes: list[tuple[Tensor, Status]]
    evaluations: int
    products: int
    expected: bool = True
    inaccurate: str = ""


class Tiled:
    """An inverse of k systems that serves a multiple of k right-hand sides, all rows of the flat batch."""

    def __init__(self, inverse: Left, systems: int, rows: int) -> None:
        self.inverse, self.systems, self.rows = inverse, systems, rows

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        if self.systems == b.shape[0]:
            return self.inverse.solve(b, adjoint)
        return self.inverse.solve(b.unflatten(0, (-1, self.systems)), adjoint).flatten(0, 1)

    @property
    def suspicious(self) -> Tensor:
        return self.inverse.suspicious

    @property
    def singular(self) -> Tensor | None:
        """Whether it is; None where the inverse may be of a matrix nearby, and cannot tell."""
        return self.inverse.singular if isinstance(self.inverse, SharedFactors) else None

    @property
    def refused(self) -> Tensor | None:
        """Statuses, of all rows, of derivatives that the forward solve has found not to exist; None where it has not looked."""
        if not isinstance(self.inverse, Refusing):
            return None
        return self.inverse.refused.repeat(self.rows // max(1, self.systems))
