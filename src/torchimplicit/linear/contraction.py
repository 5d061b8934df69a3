"""Linear systems (I − M) x = b in which M may be a contraction: the adjoint of a fixed point."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished, occurs
from torchimplicit.linear.auto import Auto, AutoState, better_of
from torchimplicit.linear.factors import square
from torchimplicit.linear.gmres import GMRES
from torchimplicit.linear.iteration import tolerance
from torchimplicit.linear.mixing import mixture
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.solver import Bound, LinearResult
from torchimplicit.linear.vectors import fit
from torchimplicit.linear.window import store

FAST = 0.5  # a contraction factor below which plain steps are not mixed
PERIOD = 3  # a mixture for so many steps,
MEMORY = 6  # of so many of the last ones
PROBE = 12  # steps after which their rate is known,
LATEST = 6  # from the last ones
CHEAP = 48  # a forecast of so many further steps is not worth a Krylov space
RESTART = 32  # steps in which GMRES shows whether it does better
KRYLOV_COST = 2  # of a step of GMRES, in steps


@dataclass(frozen=True)
class Contraction:
    """Plain steps x ← x + (b − A x), the Neumann series, while they are the cheapest way to the tolerance.

    Where one reduces the residual by less than a half, every third starts from the mixture of the last six with the smallest residual:
    fast or slow, a step is one product, and with the mixtures there are hardly more of them than GMRES needs, without its growing
    basis. After a few of them their rate is known. If it promises the tolerance soon, they go on. Otherwise GMRES takes one cycle,
    which shows its own rate, and what promises to finish with the fewest products does: these steps (with a spectrum around a
    circle, as that of an orthogonal M, GMRES gains nothing), GMRES, or factors (n products).
    Made for solves that are not recorded: it reads values.
    Source: Suryanarayana, Pratapa and Pask, Alternating Anderson-Richardson method, Comput. Phys. Commun. 234 (2019), for the mixtures.
    """

    def factorize(self, operator: LinearOperator) -> ContractionState:
        """The state for this operator; nothing is computed."""
        return ContractionState(square(operator, "Contraction"))


class ContractionState(Bound):
    """The steps bound to an operator."""

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self.fallback: AutoState | None = None

    def iterate(
        self,
        b: Tensor,
        adjoint: bool = False,
        *,
        x0: Tensor | None = None,
        rtol: float | Tensor | None = None,
        atol: float | None = None,
        max_steps: int | None = None,
    ) -> LinearResult:
        """The solution with its true residual; see :meth:`IterativeState.iterate`."""
        operator = self.operator
        n = operator.shape[-1]
        b = fit(b, operator.batch_shape, n, operator.dtype, name="b")
        bound = tolerance(torch.linalg.vector_norm(b, dim=-1), rtol, atol)
        limit = math.inf if max_steps is None else max_steps
        if x0 is None:
            steps = _Steps(operator, adjoint, b, torch.zeros_like(b), b, bound)
        else:
            x0 = fit(x0, operator.batch_shape, n, operator.dtype, name="x0").expand(b.shape)
            steps = _Steps.anew(operator, adjoint, b, x0, bound)
        left = limit - steps.take(min(PROBE, limit))
        result = steps.result()
        if finished(result.converged) or left <= 0:
            return result
        further = _forecast(result, bound, steps.rate)
        before: LinearResult | None = None
        if further > CHEAP and n <= Auto().dense_limit:
            return better_of(result, self._automatic(b, adjoint, result.x, rtol, atol, left, Auto()))
        if further > CHEAP:
            cycle = int(min(RESTART, left))
            krylov = GMRES(restart=RESTART).factorize(operator)
            second = krylov.iterate(b, adjoint, x0=result.x, rtol=rtol, atol=atol, max_steps=cycle)
            gain = _worst(second.residual_norm, result.residual_norm, bound) ** (1 / cycle)
            before = result = better_of(result, second)
            left -= cycle
            if finished(result.converged) or left == 0:
                return result
            further = _forecast(result, bound, steps.rate)
            krylov_products = KRYLOV_COST * _forecast(result, bound, gain)
            dense_products = n if n <= Auto().fallback_limit else math.inf
            if not further < min(krylov_products, dense_products):
                solver = Auto(dense_limit=n) if dense_products < krylov_products else Auto()
                return better_of(result, self._automatic(b, adjoint, result.x, rtol, atol, left, solver))
            steps = _Steps.anew(operator, adjoint, b, result.x, bound)
        left -= steps.take(int(min(2 * further + PROBE, left)))
        result = steps.result() if before is None else better_of(before, steps.result())
        if finished(result.converged) or left == 0:
            return result
        return better_of(result, self._automatic(b, adjoint, result.x, rtol, atol, left, Auto()))

    def _automatic(
        self,
        b: Tensor,
        adjoint: bool,
        x0: Tensor,
        rtol: float | Tensor | None,
        atol: float | None,
        limit: float,
        solver: Auto,
    ) -> LinearResult:
        self.fallback = solver.factorize(self.operator)
        self.direct = self.fallback.direct
        x0 = torch.where(x0.isfinite().all(-1, keepdim=True), x0, 0)
        max_steps = None if limit == math.inf else int(limit)
        return self.fallback.iterate(b, adjoint, x0=x0, rtol=rtol, atol=atol, max_steps=max_steps)


class _Steps:
    """Steps from x, whose residual is r; systems that have converged stay where they are: their r is set to zero.

    dr, dp : the last differences of residuals, and of where plain steps lead (p = x + r), (..., m, n); None as long as all are fast.
    k : how many of them were stored.
    """

    def __init__(
        self, operator: LinearOperator, adjoint: bool, b: Tensor, x: Tensor, r: Tensor, bound: Tensor, products: int = 0
    ) -> None:
        self.operator, self.adjoint, self.b, self.x, self.r, self.bound = operator, adjoint, b, x.clone(), r, bound
        self.norms = [torch.linalg.vector_norm(r, dim=-1)]
        self.active = self.norms[0] > bound  # False for NaN
        if not finished(self.active):
            self.r = torch.where(self.active.unsqueeze(-1), r, 0)
        self.taken = torch.zeros_like(self.norms[0], dtype=torch.int64)
        self.products = products
        self.dr: Tensor | None = None
        self.dp: Tensor | None = None
        self.k = 0

    @staticmethod
    def anew(operator: LinearOperator, adjoint: bool, b: Tensor, x: Tensor, bound: Tensor) -> _Steps:
        """From any x, at the price of one product."""
        return _Steps(operator, adjoint, b, x, b - operator.apply(x, adjoint), bound, products=1)

    def take(self, limit: float) -> int:
        """At most so many steps; returns how many there were."""
        taken = 0
        while taken < limit and occurs(self.active):
            mixed = None
            if self.dr is not None and self.dp is not None and self.k and self.k % PERIOD == 0:
                m = min(self.k, MEMORY)
                mixed = mixture(self.dr[..., :m, :], self.dp[..., :m, :], self.r)
            self.x += self.r if mixed is None else self.r - mixed
            before = self.r if self.dr is not None or self.r is self.b else None
            del self.r  # what nobody needs any more makes room for the product
            self.r = self.b - self.operator.apply(self.x, self.adjoint)
            taken += 1
            self.taken = self.taken + self.active
            self.norms.append(torch.linalg.vector_norm(self.r, dim=-1))
            self.active = self.active & (self.norms[-1] > self.bound)
            if not finished(self.active):
                self.r.masked_fill_(~self.active.unsqueeze(-1), 0)
            if self.dr is None and _worst(self.norms[-1], self.norms[-2], self.bound) > FAST:
                self.dr = self.r.new_empty(*self.r.shape[:-1], MEMORY, self.r.shape[-1])
                self.dp = torch.empty_like(self.dr)
            if before is not None and self.dr is not None and self.dp is not None:
                store(self.dr, self.k, self.r, before)
                store(self.dp, self.k, self.r, mixed)
                self.k += 1
        self.products += taken
        return taken

    @property
    def rate(self) -> float:
        """The factor by which a step has reduced the residual of the slowest system of late."""
        steps = min(LATEST, len(self.norms) - 1)
        return _worst(self.norms[-1], self.norms[-1 - steps], self.bound) ** (1 / steps) if steps else 0.0

    def result(self) -> LinearResult:
        """Where they have led."""
        norm = self.norms[-1]
        return LinearResult(self.x, norm, self.taken, norm <= self.bound, ~norm.isfinite(), self.active, self.products)


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
