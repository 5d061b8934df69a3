"""What a method may ask about the problem, and what it knows of the error of z."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from torchimplicit.autograd.products import Linearisation
from torchimplicit.autograd.transforms import without_dead_wrappers
from torchimplicit.capture.calls import CaptureError
from torchimplicit.capture.randomness import Watched
from torchimplicit.condition import Flat, Kind, defined
from torchimplicit.graph.loop import Operands
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.memory import Memory
from torchimplicit.linear.pattern import Pattern
from torchimplicit.sparsity.detection import detect

T = TypeVar("T")

# What a function raises where it is not defined. An error of its own making (a shape, a type) shows at the start already.
UNDEFINED = (ArithmeticError, AssertionError, RuntimeError, ValueError)


class Estimate(NamedTuple):
    """What a method knows of the error of z.

    correction : (B, n), what it would change z by next, up to the sign, but for ``scale``, a number or (B,).
    contraction : by what factor further corrections become smaller, so that all of them together are 1 / (1 − contraction) as
        large. None: it has to be seen from one step to the next. A number, or (B,): as long as nothing was seen yet; 0.0 of a
        correction that is Newton's, which is the error itself up to higher order.
    complete : whether what is seen plays no part: the method knows more.
    sharper : gives the scale itself, (B,), for a product or so, of which ``scale`` is no more than a lower bound. None: it is known.
    """

    correction: Tensor
    contraction: Tensor | float | None = None
    scale: Tensor | float = 1.0
    complete: bool = False
    sharper: Callable[[], Tensor] | None = None

    @property
    def sharp(self) -> Estimate:
        """With the scale itself."""
        return self if self.sharper is None else self._replace(scale=self.sharper(), sharper=None)

    def scaled(self, size: Tensor) -> Tensor:
        """What a size of the correction stands for."""
        return size if isinstance(self.scale, float) and self.scale == 1 else self.scale * size


def growth(dz: Tensor, dr: Tensor) -> Tensor:
    """‖Δz‖ / ‖Δr‖ from both norms, (B,); infinite where the second is 0 or not known, for its squares have overflowed."""
    return torch.where(dr < torch.inf, dz / dr, torch.inf)


def whole(gain: Tensor, r: Tensor) -> Estimate:
    """All that a residual stands for: so many times, (B,), itself."""
    return Estimate(r, 0.0, gain, complete=True)


class Equations:
    """What a solver may ask about the problem. Evaluations of the user's function and products with Jacobians are counted.

    f : the user's function of flat unknowns, (B, n) -> (B, m) or (B,).
    kind : what of it must vanish.
    part : gives the function for some rows of the batch, where it is known which of its tensors have them; else None.
    remark : what users should know of the function if the solve fails: what it has raised last at a trial point, say.
    operands : the tensors that the function uses, while a graph is made of a solve.
    memory : what is known of the Jacobians of the condition.
    """

    def __init__(
        self,
        f: Flat,
        kind: Kind,
        part: Callable[[slice | Tensor], Flat] | None = None,
        operands: Operands | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.operands = operands
        self.memory = memory
        self._f = f
        self._watched: Watched | None = None
        self.kind = kind
        self.part = part
        self._evaluations = 0
        self.products = 0
        self.remark = ""

    def watch(self, device: torch.device) -> None:
        """From now on it is noticed whether the function gives two answers for one z."""
        self._f = self._watched = Watched(self._f, device)

    @property
    def noisy(self) -> Tensor | None:
        """The systems (B,) that were seen to do so; None as long as the function has drawn no random numbers."""
        return None if self._watched is None else self._watched.noisy

    @property
    def default_generators_untouched(self) -> bool:
        """Whether it is known that the function draws no random numbers from torch's default generators. It may from others."""
        return self._watched is not None and self._watched.noisy is None

    @property
    def evaluations(self) -> int:
        """Of the function so far, those included that looked for noise."""
        return self._evaluations + (0 if self._watched is None else self._watched.repeated)

    @evaluations.setter
    def evaluations(self, count: int) -> None:
        self._evaluations += count - self.evaluations

    def of_rows(self, rows: slice | Tensor) -> Equations:
        """Those of some systems of the batch, with counts of their own."""
        part = self.part
        assert part is not None
        memory = None if self.memory is None else self.memory.of_rows()
        return Equations(part(rows), self.kind, lambda inner: part(_rows_of(rows, inner)), memory=memory)

    def add(self, counted: Sequence[tuple[Equations, int]], batch: int) -> None:
        """Count what was asked of parts of the batch, each of so many rows, in evaluations of the whole batch."""
        self.evaluations += math.ceil(sum(rows * part.evaluations for part, rows in counted) / batch)
        self.products += math.ceil(sum(rows * part.products for part, rows in counted) / batch)
        self.remark = next((part.remark for part, _ in counted if part.remark), self.remark)

    def residual(self, z: Tensor) -> Tensor:
        """g(z): (B, n) -> (B, n)."""
        self.evaluations += 1
        return self.kind.residual(self._f, z)

    def jacobian(self, z: Tensor) -> Jacobian:
        """∂g/∂z at z as an operator, from one evaluation of g (``.value`` is g(z))."""
        return self._linearised(self.kind.residual, z, self.kind.symmetric, self.memory)

    def jacobian_of_gradient(self, z: Tensor) -> Jacobian:
        """That of what vanishes where z is free of bounds, an operator (B, n, n); ``.value`` is the gradient."""
        return self._linearised(self.kind.gradient, z, self.kind.minimised, self.memory)

    def squares(self, z: Tensor) -> Tensor:
        """The numbers (B, m) whose sum of squares is minimised: the residuals r of a fit, the residual g of a root."""
        self.evaluations += 1
        return self.kind.squares(self._f, z)

    def jacobian_of_squares(self, z: Tensor) -> Jacobian:
        """Their Jacobian at z, an operator (B, m, n); ``.value`` is r(z)."""
        return self._linearised(self.kind.squares, z, False)

    def objective(self, z: Tensor) -> Tensor:
        """What is minimised, (B,): φ(z), or half of the sum of squares."""
        self.evaluations += 1
        return self.kind.objective(self._f, z)

    def objective_and_residual(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Both, of a minimum or a fit: the objective and its gradient, from one evaluation."""
        self.evaluations += 1
        objective = Linearisation(lambda z: self.kind.objective(self._f, z), (z,))
        return objective.value, defined(objective.gradient(torch.ones_like(objective.value)), objective.value)

    def objective_and_constraints(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What is minimised, (B,), and the constraints, equalities first, (B, m)."""
        self.evaluations += 1
        return self.kind.objective_and_constraints(self._f, z)

    def gradient(self, z: Tensor) -> Tensor:
        """What vanishes where z is free of bounds, (B, n)."""
        self.evaluations += 1
        return self.kind.gradient(self._f, z)

    def bounds(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The lower and the upper bounds of the unknowns, (B, n); infinite where there are none."""
        self.evaluations += self.kind.bounded  # which the user's function is asked for
        return self.kind.bounds(self._f, z)

    def objective_and_jacobian(self, z: Tensor) -> tuple[Tensor, Jacobian]:
        """The objective at z, (B,), detached, and its Hessian (``.value`` is the gradient), from one evaluation."""
        seen = []

        def part(f: Flat, z: Tensor) -> Tensor:
            def noted(z: Tensor) -> Tensor:
                seen.append(f(z))
                return seen[-1]

            return self.kind.gradient(noted, z)

        jacobian = self._linearised(part, z, self.kind.minimised, self.memory)
        (out,) = without_dead_wrappers(seen[:1])
        return self.kind.objective(lambda z: out.detach(), z), jacobian

    def pattern_of_slope(self, z: Tensor) -> Pattern:
        """Of a constrained kind: where ∂(∇_z L)/∂w has entries, (n, N). Raises as ``detect`` does."""
        return detect(lambda z: self.kind.slope(self._f, z), z)

    def attempt(self, evaluate: Callable[..., T], *at: Any) -> T | None:
        """``evaluate(*at)``, of one of these methods, say, at a trial point; None where the function raises, so that the solver
        may come nearer to the last point, where it did not."""
        try:
            return evaluate(*at)
        except UNDEFINED as error:
            if isinstance(error, (CaptureError, torch.OutOfMemoryError)):
                raise
            self.remark = f"At a trial point the function raised {type(error).__name__}: {error}"
            return None

    def _linearised(
        self, part: Callable[[Flat, Tensor], Tensor], z: Tensor, symmetric: bool, memory: Memory | None = None
    ) -> Jacobian:
        self.evaluations += 1
        return _Counted(self, lambda z: part(self._f, z), z, symmetric, memory)


def _rows_of(outer: slice | Tensor, inner: slice | Tensor) -> Tensor:
    """Which rows of the whole are the inner rows of the outer ones."""
    if isinstance(outer, Tensor):
        return outer[inner]
    if isinstance(inner, Tensor):
        return outer.start + inner
    return torch.arange(outer.start, outer.stop)[inner]


class _Counted(Jacobian):
    def __init__(self, equations: Equations, g: Flat, z: Tensor, symmetric: bool, memory: Memory | None) -> None:
        self._equations = equations
        super().__init__(g, z, symmetric=symmetric, of_g=equations.operands, memory=memory)

    def count(self, products: int) -> None:
        super().count(products)
        self._equations.products += products
