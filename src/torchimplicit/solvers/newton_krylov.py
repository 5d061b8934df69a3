"""Newton's method with a matrix-free linear solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import below, occurs
from torchimplicit.linear.binding import bind
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.large import Large
from torchimplicit.linear.solver import LinearSolver, is_linear_solver
from torchimplicit.norms import measured, rms
from torchimplicit.parameters import check_count, check_positive
from torchimplicit.solvers.backtracking import Backtracking, SearchState
from torchimplicit.solvers.equations import Equations, Estimate, growth, whole
from torchimplicit.solvers.method import Method

RUN_OFF = 0.75  # a step whose J s is less than eps to this power of s, beside ‖J‖, is along a gauge, and rounding is all it rests on
UNLIKE = 0.3  # of a residual: if a step leaves as much, the Jacobian may be no more what it was at the start
FAR = 10  # times as far as z is large


class NewtonKrylovState(NamedTuple):
    """The Jacobian at z, the relative tolerance (B,) of the next linear solve, the memory of the line search, and how much larger the
    error is than the residual, (B,), None at the start: at least so much, where the ``last`` residual is given, with which one product
    tells more."""

    jacobian: Jacobian
    forcing: Tensor
    search: SearchState | None
    gain: Tensor | None = None
    last: Tensor | None = None


class NewtonKrylovMemory(NamedTuple):
    """The part of a state that is no graph."""

    forcing: Tensor
    search: SearchState | None
    gain: Tensor | None


def check_iterative(linear_solver: LinearSolver, name: str, hint: str = "") -> None:
    """Raise TypeError unless the linear solver is one that goes by products."""
    if not is_linear_solver(linear_solver) or hasattr(linear_solver, "from_tensors"):
        raise TypeError(
            f"{name} needs an iterative solver object of torchimplicit.linear, such as GMRES(); got {linear_solver!r}.{hint}"
        )


@dataclass(frozen=True)
class NewtonKrylov(Method):
    """Inexact Newton: J(z) s = −g(z) is solved to a relative residual η that falls as the steps converge.

    η = 0.9 (‖g(z)‖ / ‖g(z previous)‖)², safeguarded, between 1e-4 and ``loosest``: choice 2 of Eisenstat and Walker,
    Choosing the forcing terms in an inexact Newton method, SIAM J. Sci. Comput. 17 (1996).
    With a ``line_search`` a step that does not bring the residual down is shortened (:class:`Backtracking`).
    Where J is singular along a gauge and the linear solve ends in noise divided by noise, there is no step, and the solve has failed.
    Nothing of size n² is formed.
    """

    linear_solver: LinearSolver = None  # type: ignore[assignment]  # Large
    loosest: float = 0.1
    max_inner: int = 200
    line_search: Backtracking | None = None
    max_steps: ClassVar[int] = 100
    patience: ClassVar[int] = 15
    in_graph: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.linear_solver:  # a default that torch.compile can read
            object.__setattr__(self, "linear_solver", Large())
        check_count("NewtonKrylov: max_inner", self.max_inner)
        check_positive("NewtonKrylov: loosest", self.loosest)
        check_iterative(self.linear_solver, "NewtonKrylov", " For a direct one use Newton.")

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, NewtonKrylovState]:
        jacobian = equations.jacobian(z)
        forcing = torch.full_like(rms(jacobian.value.detach()), self.loosest)
        search = None if self.line_search is None else self.line_search.start(jacobian.value)
        return jacobian.value, NewtonKrylovState(jacobian, forcing, search)

    def step(
        self, equations: Equations, z: Tensor, r: Tensor, state: NewtonKrylovState
    ) -> tuple[Tensor, Tensor, NewtonKrylovState]:
        before, size = rms(z.detach()), rms(r.detach())
        linear = bind(self.linear_solver, state.jacobian)
        s = linear.iterate(r, rtol=state.forcing, max_steps=self.max_inner).x
        search = state.search
        if self.line_search is not None and search is not None:
            z, jacobian, search = self.line_search.along(equations, z, -s, search)
        else:
            z = z - s
            jacobian = equations.jacobian(z)
        ratio = rms(jacobian.value.detach()) / size
        memory = jacobian.memory
        if memory is not None and not below(ratio, UNLIKE):
            memory.doubt()
        forcing = 0.9 * ratio**2
        safeguard = 0.9 * state.forcing**2
        forcing = torch.where(safeguard > 0.1, forcing.maximum(safeguard), forcing)
        forcing = forcing.nan_to_num(nan=self.loosest).clamp(1e-4, self.loosest)
        length = rms(s.detach())
        gain, last = growth(length, size), r.detach()
        far = length > FAR * before  # nearer multiple roots J becomes as small without harm
        if not occurs(far):
            return z, jacobian.value, NewtonKrylovState(jacobian, forcing, search, gain, last)
        least = _least_gain(last, jacobian)
        lost = far & (gain * torch.finfo(z.dtype).eps ** RUN_OFF > least)
        z = torch.where(lost.unsqueeze(-1), torch.nan, z)
        return z, jacobian.value, NewtonKrylovState(jacobian, forcing, search, gain.fmax(least))

    def estimate(self, z: Tensor, r: Tensor, state: NewtonKrylovState) -> Estimate | None:
        """All that the residual stands for."""
        gain, last = state.gain, state.last
        if gain is None or last is None:
            return None if gain is None else whole(gain, r)
        return whole(gain, r)._replace(sharper=lambda: gain.fmax(_least_gain(last, state.jacobian)))

    def restart(self, equations: Equations, z: Tensor, memory: NewtonKrylovMemory) -> tuple[Tensor, NewtonKrylovState]:
        """The residual and the state at z, with the forcing term that was reached."""
        r, state = self.init(equations, z)
        return r, state._replace(forcing=memory.forcing, search=memory.search, gain=memory.gain)

    def remembered(self, state: NewtonKrylovState) -> NewtonKrylovMemory:
        """What a restart needs beside z."""
        return NewtonKrylovMemory(state.forcing, state.search, state.gain)


def _least_gain(r: Tensor, jacobian: Jacobian) -> Tensor:
    """What ‖J⁻¹r₊‖ / ‖r₊‖ at the new point is at least, (B,), as one product tells, by Cauchy and Schwarz: ‖r₊‖ / ‖Jᵀr₊‖. An inexact
    step leaves what J makes small, of which its own length knows nothing. Where r₊ is 0, the last residual r takes its place.
    """
    with torch.no_grad():
        value = jacobian.value.detach()
        unit = measured(value)
        if occurs(unit == 0):
            value = torch.where((unit == 0).unsqueeze(-1), r, value)
            unit = measured(value)
        # J may be as large or as small as it is: the square of its unit could overflow
        value = value / torch.where(unit > 0, unit, 1).unsqueeze(-1)
        return growth(rms(value), rms(jacobian.rmatvec(value)))
