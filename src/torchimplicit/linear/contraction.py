"""Linear systems (I − M) x = b in which M may be a contraction: the adjoint of a fixed point."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .auto import Auto, AutoState, better_of
from .factors import square
from .gmres import GMRES
from .iteration import LinearResult, tolerance
from .operators import LinearOperator
from .vectors import fit

PROBE = 8  # plain steps after which their rate is known
CHEAP = 48  # a forecast of so many further plain steps is not worth a Krylov space
RESTART = 32  # steps in which GMRES shows whether it does better
KRYLOV_COST = 2  # of a step of GMRES, in plain steps


@dataclass(frozen=True)
class Contraction:
    """Plain steps x ← x + (b − A x), the Neumann series, while they are the cheapest way to the tolerance.

    After a few of them their rate is known. If it promises the tolerance soon, they go on. Otherwise GMRES takes one cycle,
    which shows its own rate, and what promises to finish with the fewest products does: plain steps (with a spectrum around a
    circle, as that of an orthogonal M, GMRES gains nothing), GMRES, or factors (n products).
    Made for solves that are not recorded: it reads values.
    """

    def factorize(self, operator: LinearOperator) -> ContractionState:
        """The state for this operator; nothing is computed."""
        return ContractionState(square(operator, "Contraction"))


class _Plain(NamedTuple):
    x: Tensor
    r: Tensor
    norm: Tensor
    steps: Tensor
    rate: float


class ContractionState:
    """The plain steps bound to an operator."""

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self.fallback: AutoState | None = None

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """x with A x = b or Aᴴ x = b, to default tolerance."""
        return self.iterate(b, adjoint).x

    def iterate(
        self,
        b: Tensor,
        adjoint: bool = False,
        *,
        rtol: float | None = None,
        atol: float | None = None,
        max_steps: int | None = None,
    ) -> LinearResult:
        """The solution with its true residual; see :meth:`IterativeState.iterate`."""
        operator = self.operator
        b = fit(b, operator.batch_shape, operator.shape[-1], operator.dtype, name="b")
        norm_b = torch.linalg.vector_norm(b, dim=-1)
        bound = tolerance(norm_b, rtol, atol)
        products = 0

        def A(x: Tensor) -> Tensor:
            nonlocal products
            products += 1
            return operator.apply(x, adjoint)

        plain = _Plain(torch.zeros_like(b), b, norm_b, torch.zeros_like(norm_b, dtype=torch.int64), 0.0)
        limit = math.inf if max_steps is None else max_steps
        plain = self._steps(A, b, plain, bound, int(min(PROBE, limit)))
        result = _result(plain, bound, products)
        if bool(result.converged.all()) or limit <= PROBE:
            return result
        further = _forecast(plain, bound)
        if further > CHEAP and operator.shape[-1] <= Auto().dense_limit:
            return better_of(result, self._automatic(b, adjoint, result.x, rtol, atol, max_steps, Auto()))
        if further > CHEAP:
            cycle = int(min(RESTART, limit - PROBE))
            krylov = GMRES(restart=RESTART).factorize(operator)
            second = krylov.iterate(b, adjoint, x0=plain.x, rtol=rtol, atol=atol, max_steps=cycle)
            gain = _worst(second.residual_norm, plain.norm, bound) ** (1 / cycle)
            result = better_of(result, second)
            if bool(result.converged.all()):
                return result
            r = b - A(result.x)
            plain = _Plain(result.x, r, torch.linalg.vector_norm(r, dim=-1), result.steps, plain.rate)
            further = _forecast(plain, bound)
            krylov_products = KRYLOV_COST * _forecast(plain._replace(rate=gain), bound)
            n = operator.shape[-1]
            dense_products = n if n <= Auto().fallback_limit else math.inf
            if not further < min(krylov_products, dense_products):
                solver = Auto(dense_limit=n) if dense_products < krylov_products else Auto()
                return better_of(result, self._automatic(b, adjoint, result.x, rtol, atol, max_steps, solver))
        plain = plain._replace(steps=torch.zeros_like(plain.steps))  # those of `result` are added
        plain = self._steps(A, b, plain, bound, int(min(2 * further + PROBE, limit)))
        result = better_of(result, _result(plain, bound, products))
        if bool(result.converged.all()) or max_steps is not None:
            return result
        return better_of(result, self._automatic(b, adjoint, result.x, rtol, atol, None, Auto()))

    def _automatic(
        self,
        b: Tensor,
        adjoint: bool,
        x0: Tensor,
        rtol: float | None,
        atol: float | None,
        max_steps: int | None,
        solver: Auto,
    ) -> LinearResult:
        self.fallback = solver.factorize(self.operator)
        x0 = torch.where(x0.isfinite().all(-1, keepdim=True), x0, 0)
        return self.fallback.iterate(b, adjoint, x0=x0, rtol=rtol, atol=atol, max_steps=max_steps)

    @property
    def direct(self) -> Any:
        """The factors, where it came to a factorisation."""
        return None if self.fallback is None else self.fallback.direct

    @staticmethod
    def _steps(A: Callable[[Tensor], Tensor], b: Tensor, plain: _Plain, bound: Tensor, limit: int) -> _Plain:
        """At most ``limit`` plain steps; systems that have converged stay where they are."""
        x, r, norm, steps, rate = plain
        active = norm > bound  # False for NaN
        before: Tensor | None = None
        for _ in range(limit):
            if not bool(active.any()):
                break
            x_new = x + r
            r_new = b - A(x_new)
            before = norm
            steps = steps + active
            if bool(active.all()):
                x, r, norm = x_new, r_new, torch.linalg.vector_norm(r_new, dim=-1)
            else:
                rows = active.unsqueeze(-1)
                x, r = torch.where(rows, x_new, x), torch.where(rows, r_new, r)
                norm = torch.where(active, torch.linalg.vector_norm(r_new, dim=-1), norm)
            active = norm > bound
        return _Plain(x, r, norm, steps, rate if before is None else _worst(norm, before, bound))


def _worst(after: Tensor, before: Tensor, bound: Tensor) -> float:
    """The largest ratio of residuals among the systems that had not converged before."""
    ratio = torch.where(before > bound, after / before, 0)
    worst = float(ratio.nan_to_num(nan=0.0).max()) if ratio.numel() else 0.0
    return worst


def _forecast(plain: _Plain, bound: Tensor) -> float:
    """How many more plain steps the slowest system needs at the rate that was seen."""
    if not 0 < plain.rate < 1:
        return 0.0 if plain.rate == 0 else math.inf
    gap = (plain.norm / bound).nan_to_num(nan=0.0, posinf=0.0).max() if bound.numel() else torch.zeros(())
    return max(0.0, math.log(max(float(gap), 1.0)) / -math.log(plain.rate))


def _result(plain: _Plain, bound: Tensor, products: int) -> LinearResult:
    converged = plain.norm <= bound
    return LinearResult(plain.x, plain.norm, plain.steps, converged, ~plain.norm.isfinite(), products)
