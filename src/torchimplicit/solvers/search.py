"""A solver in the loop, as the way a problem's root is searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute_later

from torchimplicit.solvers.loop import Advance, Equations, Found, Solver, Stopping, Watch, solve


@dataclass(frozen=True)
class Iterate:
    """Run a solver step by step (:func:`torchimplicit.solvers.loop.solve`)."""

    solver: Solver
    trace: bool = False
    watch: Watch | None = None

    def __call__(self, equations: Equations, z0: Tensor, stopping: Stopping, inside: Any) -> Found:
        return solve(self.solver, equations, z0, stopping, watch=self.watch, keep_trace=self.trace)

    def recorded(self, equations: Equations, z0: Tensor, stopping: Stopping, checkpoint: bool) -> Found:
        advance = self._checkpointed(equations) if checkpoint else None
        return solve(self.solver, equations, z0, stopping, watch=self.watch, keep_trace=self.trace, advance=advance)

    def inverse(self, found: Found) -> tuple[Tensor, ...]:
        inverse = getattr(self.solver, "inverse", None)
        return () if inverse is None else inverse(found.state)

    def from_tensors(self, tensors: Sequence[Tensor]) -> Any:
        return self.solver.from_tensors(tensors)  # type: ignore[attr-defined]  # only asked of solvers with an inverse

    def _checkpointed(self, equations: Equations) -> Advance:
        """Steps that keep their inputs only. A state that holds a graph is made anew from z and what its solver remembers."""
        solver: Any = self.solver

        def restarted(z: Tensor, memory: Any) -> tuple[Tensor, Tensor, Any]:
            r, state = solver.restart(equations, z, memory)
            z, r, state = solver.step(equations, z, r, state)
            return z, r, solver.memory(state)

        def advance(z: Tensor, r: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
            if hasattr(solver, "restart"):
                memory = state.content if isinstance(state, _Memory) else solver.memory(state)
                z, r, memory = recompute_later(restarted, z, memory, use_reentrant=False)
                return z, r, _Memory(memory)
            step: Advance = lambda z, r, state: solver.step(equations, z, r, state)  # noqa: E731
            result: tuple[Tensor, Tensor, Any] = recompute_later(step, z, r, state, use_reentrant=False)
            return result

        return advance


@dataclass(frozen=True)
class _Memory:
    """What a solver remembers from one checkpointed step to the next, in place of its state."""

    content: Any
