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
        """Steps that keep their inputs only. A restartable solver's state is made anew from z: it may hold a graph."""

        def restarted(z: Tensor) -> tuple[Tensor, Tensor]:
            r, state = self.solver.init(equations, z)
            z, r, _ = self.solver.step(equations, z, r, state)
            return z, r

        def advance(z: Tensor, r: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
            if getattr(self.solver, "restartable", False):
                return (*recompute_later(restarted, z, use_reentrant=False), state)
            step: Advance = lambda z, r, state: self.solver.step(equations, z, r, state)  # noqa: E731
            result: tuple[Tensor, Tensor, Any] = recompute_later(step, z, r, state, use_reentrant=False)
            return result

        return advance
