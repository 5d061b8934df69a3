"""The choice for systems that are too large for dense factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished, tracing, values_hidden
from torchimplicit.linear.cg import CG
from torchimplicit.linear.factors import square
from torchimplicit.linear.gmres import GMRES
from torchimplicit.linear.iteration import LinearResult, after
from torchimplicit.linear.memory import Memory
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.vectors import fit, unpatterned


@dataclass(frozen=True)
class Large:
    """A documented rule for A x = b with A known by its products, and what its :class:`Memory` knows of matrices like it:

    1. A is symmetric if that was promised, or if Av = Aᵀv for a vector v. Symmetric, and not seen to be indefinite: CG. Else GMRES.
    2. First without a preconditioner, in a few steps: `trial`, or `long_trial` where the factors of A would be large.
    3. For what that has not solved: the pattern of A is found, its entries are assembled, and one matrix is factorised (a narrow band
       by LAPACK, else by SuperLU; where the factors would be large, algebraic multigrid, if PyAMG is there). That preconditions
       all further systems, with this matrix and those after it; it is made anew where it takes more than `patience` steps.

    A narrow band is factorised at once. Where no pattern is found, or values may not be seen (in transforms and graphs), the method
    of 1 does what it can alone. Only true products decide what is solved.
    """

    trial: int = 16
    long_trial: int = 150
    patience: int = 30
    restart: int = 32
    max_steps: int | None = None

    def factorize(self, operator: LinearOperator) -> LargeState:
        """The state for this operator; nothing is computed."""
        return LargeState(self, square(operator, "Large"))


class LargeState:
    """The rule bound to an operator."""

    direct = None

    def __init__(self, solver: Large, operator: LinearOperator) -> None:
        self.solver, self.operator = solver, operator
        self.memory: Memory | None = operator.memory

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """x with A x = b or Aᴴ x = b, to default tolerance."""
        return self.iterate(b, adjoint).x

    def iterate(
        self,
        b: Tensor,
        adjoint: bool = False,
        *,
        x0: Tensor | None = None,
        rtol: Any = None,
        atol: float | None = None,
        max_steps: int | None = None,
    ) -> LinearResult:
        """The solution with its true residual; see :meth:`IterativeState.iterate`."""
        n = self.operator.shape[-1]
        b = fit(b, self.operator.batch_shape, n, self.operator.dtype, name="b")
        limit = self.solver.max_steps if max_steps is None else max_steps
        limit = 2 * n + 20 if limit is None else limit
        options: dict[str, Any] = {"rtol": rtol, "atol": atol}
        memory = self.memory
        if memory is None or torch.is_grad_enabled() or tracing() or values_hidden():
            return self._plain(b, adjoint, x0, limit, options)
        result: LinearResult | None = None
        if not memory.serves(b):
            sparse = memory.pattern(self.operator) is not None
            trial = limit if not sparse else self.solver.trial if memory.cheap else self.solver.long_trial
            if not (sparse and memory.banded) and not memory.stale:
                result = self._plain(b, adjoint, x0, min(trial, limit), options)
                if finished(result.converged) or not sparse:
                    return result
            memory.learn(self.operator)
        start = x0 if result is None else result.x.nan_to_num()
        return after(result, self._preconditioned(b, adjoint, start, limit, options))

    def _preconditioned(
        self, b: Tensor, adjoint: bool, x0: Tensor | None, limit: int, options: dict[str, Any]
    ) -> LinearResult:
        memory = self.memory
        assert memory is not None
        if not memory.serves(b):
            return self._plain(b, adjoint, x0, limit, options)
        result = self._krylov(b, adjoint, x0, limit, options, memory)
        memory.stale = bool((result.steps > self.solver.patience).any()) or not finished(result.converged)
        return result

    def _plain(self, b: Tensor, adjoint: bool, x0: Tensor | None, limit: int, options: dict[str, Any]) -> LinearResult:
        return self._krylov(b, adjoint, x0, limit, options, None)

    def _krylov(
        self, b: Tensor, adjoint: bool, x0: Tensor | None, limit: int, options: dict[str, Any], inverse: Memory | None
    ) -> LinearResult:
        """By CG, or where the matrix is not definite by GMRES."""
        sign = self._sign()
        how = "" if inverse is None else f", preconditioned by {inverse.inverse.title} of an earlier Jacobian"
        result: LinearResult | None = None
        if sign:
            self._note("CG" + how)
            operator = self.operator if sign > 0 else Negative(self.operator)
            preconditioner = None if inverse is None else inverse if sign > 0 else NegativeInverse(inverse)
            solver = CG(preconditioner=preconditioner, max_steps=limit)
            # A vector-Jacobian product costs half as much as a Jacobian-vector product.
            result = solver.factorize(operator).iterate(b if sign > 0 else -b, True, x0=x0, **options)
            trial = inverse is None and not bool(result.breakdown.any())
            if values_hidden() or tracing() or trial or finished(result.converged):
                return result
            x0 = result.x.nan_to_num()
            if self.memory is not None:
                self.memory.sign = 0
        self._note("GMRES" + how)
        solver_ = GMRES(restart=self.solver.restart, preconditioner=inverse, max_steps=limit)
        return after(result, solver_.factorize(self.operator).iterate(b, adjoint, x0=x0, **options))

    def _note(self, used: str) -> None:
        if self.memory is not None:
            self.memory.used = used

    def _sign(self) -> int:
        """1 or −1 where A is symmetric and, as far as is known, definite; else 0."""
        operator, memory = self.operator, self.memory
        if operator.positive_definite:
            return 1
        if memory is None or values_hidden() or tracing():
            return 0
        if memory.sign is None:
            memory.sign = probed(operator)
        return memory.sign


def probed(operator: LinearOperator) -> int:
    """1 or −1, the sign of vᵀAv, where two products say that A is symmetric, of all systems alike; else 0."""
    with torch.no_grad():
        like = torch.empty(*operator.batch_shape, operator.shape[-1], dtype=operator.dtype, device=operator.device)
        v = unpatterned(like) - 1.5
        Av = operator.rmatvec(v)
        curvature = (v * Av).sum(-1)
        sign = int(curvature.sign().sum())
        if abs(sign) != curvature.numel():
            return 0
        if not operator.symmetric:
            size = Av.abs().amax() * torch.finfo(v.dtype).eps ** 0.5
            if not bool((operator.matvec(v) - Av).abs().amax() <= size):
                return 0
    return 1 if sign > 0 else -1


class Negative(LinearOperator):
    """−A."""

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(operator.shape, operator.dtype, operator.device, symmetric=operator.symmetric)
        self.operator = operator
        self.leading = operator.leading

    def matvec(self, x: Tensor) -> Tensor:
        return -self.operator.matvec(x)

    def rmatvec(self, y: Tensor) -> Tensor:
        return -self.operator.rmatvec(y)


class NegativeInverse:
    """−M of an inverse M."""

    def __init__(self, inverse: Any) -> None:
        self.inverse = inverse

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        x: Tensor = -self.inverse.solve(b, adjoint)
        return x
