"""What a method for finding z* is: two steps to write, and what else it may tell, each with a default."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor

from torchimplicit.layout import Layout
from torchimplicit.linear.cholesky import CholeskyFactors
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
        in_graph: whether a solve by it may be part of a graph of torch.compile: its steps look at no value.
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
    in_graph: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = [name for name in (*vars(Method), *REQUIRED) if not name.startswith("_")]
        for name, value in vars(cls).items():
            meant = get_close_matches(name, known, n=1, cutoff=0.85)
            if meant and name not in known and callable(value) and not name.startswith("_"):
                raise TypeError(f"{cls.__name__}.{name} is nothing that the loop asks for. Did you mean {meant[0]}?")

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

    def from_tensors(self, tensors: Sequence[Tensor]) -> Any:
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
        return getattr(type(self), name) is not getattr(Method, name)


def is_method(solver: Any) -> bool:
    """Whether an object can be asked for steps."""
    return not isinstance(solver, type) and all(hasattr(solver, part) for part in REQUIRED)


def adopted(solver: Any) -> Method:
    """The solver itself, if it is a :class:`Method`; else one like it, with the defaults of what it does not have."""
    if isinstance(solver, Method):
        return solver
    cls = type(solver)
    twin: Any = object.__new__(type(cls.__name__, (cls, Method), {}))
    twin.__dict__.update(vars(solver))
    found: Method = twin
    return found
