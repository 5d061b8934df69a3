"""What a method for finding z* is: two steps to write, and what else it may tell, each with a default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor

from torchimplicit.layout import Layout
from torchimplicit.linear.cholesky import CholeskyFactors
from torchimplicit.linear.solver import Left
from torchimplicit.solvers.equations import Equations, Estimate

M = TypeVar("M", bound="Method")

REQUIRED = ("init", "step", "max_steps", "patience")


class Method:
    """A method for residual(z) = 0 on (B, n) tensors. It knows nothing of tolerances, of systems that finish, or of failures.

    Attributes:
        max_steps: step limit when the call gives none.
        patience: steps without progress after which a system counts as stagnated.
        unrolls: whether its steps have a derivative that tells how the result moves.
        rowwise: whether its state is a pytree of tensors with the systems in their first dimension: those that have ended are then
            put aside as they are.
        in_graph: whether its steps look at no value: then a solve by it may be part of a graph of torch.compile, if it is one of
            torchimplicit.solvers.
        inverse_is_earlier: whether ``inverse`` is that of the Jacobian at an iterate before the last.
        near_identity: whether it works only where the Jacobian is the identity less a contraction.

    Raises TypeError when a class is made that has a name which is nearly, but not quite, one of these.
    """

    if TYPE_CHECKING:

        @property
        def max_steps(self) -> int: ...

        @property
        def patience(self) -> int: ...

    unrolls: ClassVar[bool] = True
    rowwise: ClassVar[bool] = False
    in_graph: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = [name for name in (*vars(Method), *REQUIRED) if not name.startswith("_")]
        for name in vars(cls):
            meant = get_close_matches(name, known, n=1, cutoff=0.85)
            if meant and name not in known and not name.startswith("_"):
                raise TypeError(f"{cls.__name__}.{name} is nothing that the loop asks for. Did you mean {meant[0]}?")

    @property
    def title(self) -> str:
        """What it is called in reports."""
        return type(self).__name__

    @property
    def inverse_is_earlier(self) -> bool:
        return False

    @property
    def near_identity(self) -> bool:
        return False

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, Any]:
        """The residual at the start, and the method's state."""
        raise NotImplementedError

    def step(self, equations: Equations, z: Tensor, r: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        """The next z, the residual there, and the next state, from z and its residual r.

        Rows of systems that have finished are ignored; no row may influence another.
        """
        raise NotImplementedError

    def estimate(self, z: Tensor, r: Tensor, state: Any) -> Estimate | None:
        """What is known of the error of z; None where nothing is known yet. For a method without it the loop sees one in how
        residuals change from step to step (:class:`torchimplicit.loop.secant.Secant`)."""
        return None

    def merit(self, state: Any) -> Tensor | None:
        """What falls, (B,), where a method makes progress that the residual may not show: the objective of one that goes downhill."""
        return None

    def verdict(self, state: Any) -> Tensor | None:
        """How each system ends, (B,), of a method that knows itself when there is nothing more to do; RUNNING where it goes on. The
        error is asked first."""
        return None

    def hessian(self, state: Any) -> Tensor | None:
        """That of a minimum's objective at z, (B, n, n), where the state holds it."""
        return None

    def inverse(self, state: Any) -> tuple[Tensor, ...]:
        """The tensors of an approximate inverse of the last Jacobian, for the backward."""
        return ()

    def from_tensors(self, tensors: Sequence[Tensor]) -> Left:
        """That inverse, with ``solve(b, adjoint)`` and ``suspicious``. One that leaves none leaves, at a minimum, the factors of the
        Hessian that the loop looks at in the end."""
        return CholeskyFactors(tensors)

    def remembered(self, state: Any) -> Any:
        """What ``restart`` needs beside z, of a method whose state holds a graph: a pytree of tensors."""
        raise NotImplementedError

    def restart(self, equations: Equations, z: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """The residual and the state at z again, from what is remembered: so that steps can be checkpointed, and systems that have
        ended be put aside."""
        raise NotImplementedError

    def outgrown(self, state: Any) -> Tensor | None:
        """Whether this state has to become the ``grown`` one now, (), in a graph, whose loops keep the structure of theirs; None where
        it is that already."""
        return None

    def grown(self, z: Tensor, r: Tensor, state: Any) -> Any:
        """The state with all that it may ever hold."""
        raise NotImplementedError

    def starting_point(self, z: Tensor) -> Tensor:
        """The start as the method wants it."""
        return z

    def fitted(self: M, layout: Layout) -> M:
        """Itself, with parameters for each system as (B, 1)."""
        return self

    def of_rows(self: M, rows: slice | Tensor) -> M:
        """Itself, for some systems."""
        return self

    def has(self, name: str) -> bool:
        """Whether it has an answer of its own to one of these questions."""
        own = getattr(self, name)
        return getattr(own, "__func__", own) is not getattr(Method, name)


def is_method(solver: Any) -> bool:
    """Whether an object can be asked for steps."""
    return not isinstance(solver, type) and all(hasattr(solver, part) for part in REQUIRED)


def adopted(solver: Any) -> Method:
    """The solver itself, if it is a :class:`Method`; else one that asks it, and has the defaults of what it does not answer."""
    return solver if isinstance(solver, Method) else _Adopted(solver)


@dataclass(frozen=True)
class _Adopted(Method):
    """A solver that was not made as a :class:`Method`."""

    solver: Any

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_") or name in ("solver", "title", "has", "fitted", "of_rows", "in_graph"):
            return object.__getattribute__(self, name)
        solver = object.__getattribute__(self, "solver")
        if name == "remembered" and not hasattr(solver, name) and callable(getattr(solver, "memory", None)):
            name = "memory"  # as it was called before
        return getattr(solver, name) if hasattr(solver, name) else object.__getattribute__(self, name)

    @property
    def title(self) -> str:
        return type(self.solver).__name__

    def fitted(self, layout: Layout) -> Method:  # type: ignore[override]
        return adopted(self.solver.fitted(layout)) if hasattr(self.solver, "fitted") else self

    def of_rows(self, rows: slice | Tensor) -> Method:  # type: ignore[override]
        return adopted(self.solver.of_rows(rows)) if hasattr(self.solver, "of_rows") else self
