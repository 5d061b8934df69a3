"""Linear systems (I − M) x = b in which M may be a contraction: the adjoint of a fixed point."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchimplicit.linear.auto import Auto, AutoState, better_of
from torchimplicit.linear.factors import square
from torchimplicit.linear.gmres import GMRES
from torchimplicit.linear.iteration import LinearResult, tolerance
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.vectors import fit

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
    """Where plain steps have led: the residual vector there, and the factor by which the last step reduced the worst one."""

    result: LinearResult
    r: Tensor
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
        x0: Tensor | None = None,
        rtol: float | None = None,
        atol: float | None = None,
        max_steps: int | None = None,
    ) -> LinearResult:
        """The solution with its true residual; see :meth:`IterativeState.iterate`."""
        operator = self.operator
        n = operator.shape[-1]
        b = fit(b, operator.batch_shape, n, operator.dtype, name="b")
        bound = tolerance(torch.linalg.vector_norm(b, dim=-1), rtol, atol)
        limit = math.inf if max_steps is None else max_steps
        x = torch.zeros_like(b)
        r = b
        if x0 is not None:
            x = fit(x0, operator.batch_shape, n, operator.dtype, name="x0").expand(b.shape)
            r = b - operator.apply(x, adjoint)
        plain = self._steps(b, adjoint, x, r, bound, int(min(PROBE, limit)))
        result = plain.result._replace(products=plain.result.products + (x0 is not None))
        if bool(result.converged.all()) or limit <= PROBE:
            return result
        left = limit - PROBE
        further = _forecast(result, bound, plain.rate)
        if further > CHEAP and n <= Auto().dense_limit:
            return better_of(result, self._automatic(b, adjoint, result.x, rtol, atol, left, Auto()))
        r = plain.r
        if further > CHEAP:
            cycle = int(min(RESTART, left))
            krylov = GMRES(restart=RESTART).factorize(operator)
            second = krylov.iterate(b, adjoint, x0=result.x, rtol=rtol, atol=atol, max_steps=cycle)
            gain = _worst(second.residual_norm, result.residual_norm, bound) ** (1 / cycle)
            result = better_of(result, second)
            left -= cycle
            if bool(result.converged.all()) or left == 0:
                return result
            r = b - operator.apply(result.x, adjoint)
            result = result._replace(products=result.products + 1)
            further = _forecast(result, bound, plain.rate)
            krylov_products = KRYLOV_COST * _forecast(result, bound, gain)
            dense_products = n if n <= Auto().fallback_limit else math.inf
            if not further < min(krylov_products, dense_products):
                solver = Auto(dense_limit=n) if dense_products < krylov_products else Auto()
                return better_of(result, self._automatic(b, adjoint, result.x, rtol, atol, left, solver))
        plain = self._steps(b, adjoint, result.x, r, bound, int(min(2 * further + PROBE, left)))
        left -= int(plain.result.steps.max())
        result = better_of(result, plain.result)
        if bool(result.converged.all()) or left == 0:
            return result
        return better_of(result, self._automatic(b, adjoint, result.x, rtol, atol, left, Auto()))

    def _automatic(
        self,
        b: Tensor,
        adjoint: bool,
        x0: Tensor,
        rtol: float | None,
        atol: float | None,
        limit: float,
        solver: Auto,
    ) -> LinearResult:
        self.fallback = solver.factorize(self.operator)
        x0 = torch.where(x0.isfinite().all(-1, keepdim=True), x0, 0)
        max_steps = None if limit == math.inf else int(limit)
        return self.fallback.iterate(b, adjoint, x0=x0, rtol=rtol, atol=atol, max_steps=max_steps)

    @property
    def direct(self) -> Any:
        """The factors, where it came to a factorisation."""
        return None if self.fallback is None else self.fallback.direct

    def _steps(self, b: Tensor, adjoint: bool, x: Tensor, r: Tensor, bound: Tensor, limit: int) -> _Plain:
        """At most ``limit`` plain steps from x, whose residual is r; systems that have converged stay where they are."""
        norm = torch.linalg.vector_norm(r, dim=-1)
        steps = torch.zeros_like(norm, dtype=torch.int64)
        active = norm > bound  # False for NaN
        before: Tensor | None = None
        products = 0
        x = x.clone()
        while products < limit and bool(active.any()):
            x += r if bool(active.all()) else torch.where(active.unsqueeze(-1), r, 0)
            r = b - self.operator.apply(x, adjoint)  # for those that stay what it was
            products += 1
            before, norm = norm, torch.linalg.vector_norm(r, dim=-1)
            steps = steps + active
            active = active & (norm > bound)
        result = LinearResult(x, norm, steps, norm <= bound, ~norm.isfinite(), active, products)
        return _Plain(result, r, 0.0 if before is None else _worst(norm, before, bound))


def _worst(after: Tensor, before: Tensor, bound: Tensor) -> float:
    """The largest ratio of residuals among the systems that had not converged before."""
    ratio = torch.where(before > bound, after / before, 0)
    worst = float(ratio.nan_to_num(nan=0.0).max()) if ratio.numel() else 0.0
    return worst


def _forecast(result: LinearResult, bound: Tensor, rate: float) -> float:
    """How many more steps that reduce the residual by ``rate`` the slowest system needs."""
    if not 0 < rate < 1:
        return 0.0 if rate == 0 else math.inf
    gap = (result.residual_norm / bound).nan_to_num(nan=0.0, posinf=0.0).max() if bound.numel() else torch.zeros(())
    return max(0.0, math.log(max(float(gap), 1.0)) / -math.log(rate))
