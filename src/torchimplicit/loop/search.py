"""How the root of a problem is searched: by a solver in the loop, or in whatever other way a problem has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute_later

from torchimplicit.condition import Vmap
from torchimplicit.linear.solver import Left
from torchimplicit.loop.blocks import solve_in_blocks
from torchimplicit.loop.settings import LoopSettings
from torchimplicit.loop.solve import Advance, SearchResult, Watch, solve
from torchimplicit.loop.stages import solve_in_stages
from torchimplicit.solvers.equations import Equations
from torchimplicit.solvers.method import Method
from torchimplicit.solvers.polyalgorithm import Polyalgorithm


@dataclass(frozen=True)
class Inside:
    """What a search is told inside a transform: the tensors of args as they are there, and the vmaps over them."""

    tensors: Sequence[Tensor]
    vmaps: Sequence[Vmap]


class Search(ABC):
    """How a root is found: a solver in the loop, a linear solver, or a black box."""

    @abstractmethod
    def __call__(self, equations: Equations, z0: Tensor, settings: LoopSettings, inside: Inside | None) -> SearchResult:
        """Without autograd. ``inside`` is None in plain code."""

    def recorded(self, equations: Equations, z0: Tensor, settings: LoopSettings, checkpoint: bool) -> SearchResult:
        """With autograd, through every step."""
        raise TypeError(
            "Unrolled() differentiates the steps of a search, and this one has none. Use Implicit(), the default."
        )

    def inverse(self, found: SearchResult) -> tuple[Tensor, ...]:
        """The tensors of an approximate inverse of ∂g/∂z that the search leaves behind; none if it has none."""
        return found.inverse

    @abstractmethod
    def from_tensors(self, tensors: Sequence[Tensor]) -> Left:
        """That inverse again: with ``solve(b, adjoint)``, ``suspicious``, and for systems of which the search knows that they have no
        derivative ``refused`` (:class:`torchimplicit.linear.solver.Left`, :class:`torchimplicit.linear.solver.Refusing`)."""

    @property
    def inverse_is_earlier(self) -> bool:
        """Whether that is of the Jacobian at an iterate before the last, and not at the root itself."""
        return False

    @property
    def near_identity(self) -> bool:
        """Whether the root was found by what works where ∂g/∂z is the identity less a contraction."""
        return False


@dataclass(frozen=True)
class Iterate(Search):
    """Run a method step by step (:func:`torchimplicit.loop.solve.solve`)."""

    solver: Method
    trace: bool = False
    watch: Watch | None = None

    def __call__(self, equations: Equations, z0: Tensor, settings: LoopSettings, inside: Inside | None) -> SearchResult:
        if equations.part is not None and self.watch is None and not self.trace:
            return solve_in_blocks(self.solver, equations, z0, settings)
        return solve(self.solver, equations, z0, settings, watch=self.watch, keep_trace=self.trace)

    def recorded(self, equations: Equations, z0: Tensor, settings: LoopSettings, checkpoint: bool) -> SearchResult:
        if not self.solver.unrolls:
            raise TypeError(
                f"the steps of {self.solver.title} have no derivative that tells how its result moves: Unrolled() "
                f"cannot differentiate them. Use adjoint=Implicit(), which needs no steps, or another solver."
            )
        advance = self._checkpointed(equations) if checkpoint else None
        settings = replace(settings, max_steps=min(settings.max_steps, self.solver.max_steps))
        return solve(self.solver, equations, z0, settings, watch=self.watch, keep_trace=self.trace, advance=advance)

    @property
    def inverse_is_earlier(self) -> bool:
        return self.solver.inverse_is_earlier

    @property
    def near_identity(self) -> bool:
        return self.solver.near_identity

    def from_tensors(self, tensors: Sequence[Tensor]) -> Left:
        return self.solver.from_tensors(tensors)

    def _checkpointed(self, equations: Equations) -> Advance:
        """Steps that keep their inputs only. A state that holds a graph is made anew from z and what its solver remembers."""
        solver = self.solver

        def restarted(z: Tensor, memory: Any) -> tuple[Tensor, Tensor, Any]:
            r, state = solver.restart(equations, z, memory)
            z, r, state = solver.step(equations, z, r, state)
            return z, r, solver.remembered(state)

        def advance(z: Tensor, r: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
            if solver.has("restart"):
                memory = state.content if isinstance(state, _Remembered) else solver.remembered(state)
                z, r, memory = recompute_later(restarted, z, memory, use_reentrant=False)
                return z, r, _Remembered(memory)
            result: tuple[Tensor, Tensor, Any] = recompute_later(
                solver.step, equations, z, r, state, use_reentrant=False
            )
            return result

        return advance


@dataclass(frozen=True)
class InTurn(Iterate):
    """Run several methods (:func:`torchimplicit.loop.stages.solve_in_stages`), of which ``solver`` is the first."""

    stages: Sequence[Method] = ()

    def __call__(self, equations: Equations, z0: Tensor, settings: LoopSettings, inside: Inside | None) -> SearchResult:
        return solve_in_stages(self.stages, equations, z0, settings, self.watch, self.trace)


def search_by(solver: Method | Polyalgorithm, trace: bool, watch: Watch | None) -> Iterate:
    """The search with a method, or with several in turn."""
    if isinstance(solver, Polyalgorithm):
        return InTurn(solver.stages[0], trace, watch, solver.stages)
    return Iterate(solver, trace, watch)


@dataclass(frozen=True)
class _Remembered:
    """What a solver remembers from one checkpointed step to the next, in place of its state."""

    content: Any
