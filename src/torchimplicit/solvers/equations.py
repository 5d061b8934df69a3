"""What a solver is, and what it may ask about the problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from torch import Tensor

from torchimplicit.linear.jacobian import Jacobian


class Solver(Protocol):
    """A method for residual(z) = 0 on (B, n) tensors. It knows nothing of tolerances, batches that finish, or failures.

    max_steps : step limit when the call gives none.
    patience : steps without progress after which a system counts as stagnated.

    Two pairs of methods are optional. ``inverse(state) -> tensors`` and ``from_tensors(tensors) -> factors`` hand on an
    approximate inverse of the last Jacobian, with ``solve(b, adjoint)`` and ``suspicious``, for the backward. A solver whose
    state holds a graph has ``memory(state)`` and ``restart(equations, z, memory) -> (r, state)``, so that steps can be
    checkpointed.
    """

    max_steps: ClassVar[int]
    patience: ClassVar[int]

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, Any]:
        """The residual at the start, and the method's state."""
        ...

    def step(self, equations: Equations, z: Tensor, r: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        """The next z, the residual there, and the next state, from z and its residual r.

        Rows of systems that have finished are ignored; no row may influence another.
        """
        ...


class Equations:
    """What a solver may ask about the problem: residuals and Jacobians; both are counted.

    minimised : whether the residual is a gradient whose objective is to be minimised, the Jacobian a Hessian.
    """

    def __init__(self, residual: Callable[[Tensor], Tensor], symmetric: bool = False, minimised: bool = False) -> None:
        self._residual = residual
        self._symmetric = symmetric
        self.minimised = minimised
        self.evaluations = 0
        self.products = 0

    def residual(self, z: Tensor) -> Tensor:
        """g(z): (B, n) -> (B, n)."""
        self.evaluations += 1
        return self._residual(z)

    def jacobian(self, z: Tensor) -> Jacobian:
        """∂g/∂z at z as an operator, from one evaluation of g (``.value`` is g(z))."""
        self.evaluations += 1
        return _Counted(self, self._residual, z, self._symmetric)


class _Counted(Jacobian):
    def __init__(self, equations: Equations, g: Callable[[Tensor], Tensor], z: Tensor, symmetric: bool) -> None:
        self._equations = equations
        super().__init__(g, z, symmetric=symmetric)

    def count(self, products: int) -> None:
        super().count(products)
        self._equations.products += products
