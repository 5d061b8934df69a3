"""The choice for systems that are too large for dense factors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished, values_hidden
from torchimplicit.linear.bands import Banded
from torchimplicit.linear.cg import CG
from torchimplicit.linear.factors import square
from torchimplicit.linear.gmres import GMRES
from torchimplicit.linear.iteration import euclidean_norm
from torchimplicit.linear.jacobian import Jacobian, memory_of
from torchimplicit.linear.masked import Masked
from torchimplicit.linear.memory import LEFT_OUT, Memory
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.solver import Bound, LinearResult, Preconditioner, after
from torchimplicit.linear.sparse import Sparse
from torchimplicit.linear.vectors import fit, unpatterned

FIRST = 4  # steps of a trial that show whether it is worth more
EXACT = 1e-4  # relative tolerance of solutions that are not steps of an inexact method
SAME_PRODUCT = 0.75  # power of eps: relative to b, by which products with A and with Aᵀ may differ
FRESH = 2  # steps with factors of the matrix itself, the second for what rounding has left of the first
PATIENCE_WITH_BAND = 2  # steps that cost as much as other factors within a narrow band


@dataclass(frozen=True)
class Large:
    """A documented rule for A x = b with A known by its products, and what its :class:`Memory` knows of matrices like it:

    1. A is symmetric if that was promised, or if Av = Aᵀv for a vector v. Symmetric, and not seen to be indefinite: CG. Else GMRES.
    2. First by products alone, in `trial` steps, unless such a trial has failed before, or the band of A is known to be narrow. It is
       given up early where the first few steps do not go fast enough.
    3. For what that has not solved, the pattern of A is found and its entries are assembled. Where its factors are small (a narrow
       band, by LAPACK; a mesh in the plane, by SuperLU) they precondition all further systems, with this matrix and those after it,
       and are made anew where they would take more than `patience` steps.
    4. Where the factors would be large, the method of 1 goes on with the entries, which are multiplied faster, and after
       `long_trial` steps with algebraic multigrid, if PyAMG is there, in the place of factors.

    Where no pattern is found, or values may not be seen (in transforms and graphs), the method of 1 does what it can alone. Only
    products with A itself decide what is solved.
    """

    in_graph: ClassVar[bool] = True
    trial: int = 16
    long_trial: int = 150
    patience: int = 30
    restart: int = 32
    max_steps: int | None = None

    def factorize(self, operator: LinearOperator) -> LargeState:
        """The state for this operator; nothing is computed."""
        return LargeState(self, square(operator, "Large"))


class _Task(NamedTuple):
    """A right-hand side, and what is asked of the solution."""

    b: Tensor
    adjoint: bool
    limit: int
    rtol: float | Tensor | None
    atol: float | None

    @property
    def options(self) -> dict[str, Any]:
        return {"rtol": self.rtol, "atol": self.atol}

    def closer(self) -> _Task:
        """The same with half of the tolerance, so that what rounding adds to a residual does no harm."""
        return self._replace(rtol=self.relative / 2, atol=None if self.atol is None else self.atol / 2)

    @property
    def relative(self) -> float | Tensor:
        """The relative tolerance, or its default."""
        return torch.finfo(self.b.dtype).eps ** 0.5 if self.rtol is None else self.rtol


class LargeState(Bound):
    """The rule bound to an operator."""

    def __init__(self, solver: Large, operator: LinearOperator) -> None:
        self.solver, self.operator = solver, operator
        self.jacobian = operator if isinstance(operator, Jacobian) else None
        self.memory = memory_of(operator)

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
        n = self.operator.shape[-1]
        b = fit(b, self.operator.batch_shape, n, self.operator.dtype, name="b")
        limit = self.solver.max_steps if max_steps is None else max_steps
        limit = 2 * n + 20 if limit is None else limit
        task = _Task(b, adjoint, limit, rtol, atol)
        memory, jacobian = self.memory, self.jacobian
        if memory is None or jacobian is None or torch.is_grad_enabled() or values_hidden():
            return self._krylov(self.operator, task, x0, limit)
        result: LinearResult | None = None
        sparse = memory.pattern(jacobian) is not None
        if not sparse:
            return self._krylov(self.operator, task, x0, limit)
        if not (memory.serves(b) or memory.slow or memory.banded or memory.chain):
            result = self._tried(task, x0)
            if finished(result.converged):
                return result
            memory.slow = True
            x0 = result.x.nan_to_num() if self._fast(task, result) else x0
        way = self._by_factors if memory.cheap else self._by_entries
        return after(result, way(memory, jacobian, task, x0))

    def _tried(self, task: _Task, x0: Tensor | None) -> LinearResult:
        """By products alone, in as many steps as seem worth it."""
        steps = min(self.solver.trial, task.limit)
        first = self._krylov(self.operator, task, x0, min(FIRST, steps))
        if finished(first.converged) or steps <= FIRST or not self._fast(task, first):
            return first
        return after(first, self._krylov(self.operator, task, first.x.nan_to_num(), steps - FIRST))

    def _fast(self, task: _Task, result: LinearResult) -> bool:
        """Whether a trial would solve all systems if all of it went as fast as its first steps."""
        left = result.residual_norm / euclidean_norm(task.b)
        return finished(left ** (self.solver.trial / FIRST) <= task.relative)

    def _by_factors(self, memory: Memory, jacobian: Jacobian, task: _Task, x0: Tensor | None) -> LinearResult:
        old: LinearResult | None = None
        if memory.full_band is None:
            self._sign()  # which entries are checked by
        if memory.serves(task.b):
            patience = self._patience(memory) if memory.chain else self.solver.patience
            old = self._krylov(self.operator, task, x0, min(patience, task.limit), memory)
            self._judge(memory, old)
            if finished(old.converged) or task.limit <= patience:
                return old
            x0 = old.x.nan_to_num()
        matrix = memory.factorisable(jacobian)
        if isinstance(matrix, Banded) and memory.sign is None:
            memory.sign, memory.masked = matrix.sign, False  # at no product's cost
        memory.learn(matrix)
        result = self._krylov(self.operator, task, x0, task.limit, memory)
        self._judge(memory, result)
        if matrix is not None and self._misses(memory, task, x0, result) and not memory.complete(jacobian, matrix):
            memory.learn(None)
            if not finished(result.converged):
                result = after(result, self._krylov(self.operator, task, result.x.nan_to_num(), task.limit))
        return after(old, result)

    def _misses(self, memory: Memory, task: _Task, x0: Tensor | None, result: LinearResult) -> bool:
        """Whether entries may be missing from the matrix whose factors have solved this. A single step from zero with all of them
        leaves nothing, and its product is the one that confirms that."""
        if bool((result.steps > FRESH).any()):
            return True
        if not memory.confirmed and x0 is None and finished(result.steps == 1):
            left = torch.finfo(task.b.dtype).eps ** LEFT_OUT * euclidean_norm(task.b)
            if finished(result.residual_norm <= left):
                memory.confirm()
        return not memory.confirmed

    def _by_entries(self, memory: Memory, jacobian: Jacobian, task: _Task, x0: Tensor | None) -> LinearResult:
        """The assembled matrix first, A itself for what that leaves."""
        self._sign()  # which entries are checked by
        entries = memory.entries(jacobian)
        if entries is None:
            return self._krylov(self.operator, task, x0, task.limit)
        matrix = Blocks(entries)
        closer = task.closer()
        inner: LinearResult | None = None
        if not memory.serves(task.b):
            inner = self._krylov(matrix, closer, x0, min(self.solver.long_trial, task.limit))
            x0 = inner.x.nan_to_num()
            if not finished(inner.converged):
                memory.learn(entries)
        if inner is None or not finished(inner.converged):
            preconditioned = self._krylov(matrix, closer, x0, task.limit, memory)
            self._judge(memory, preconditioned)  # without the steps that it was not there for
            inner = after(inner, preconditioned)
        result = self._krylov(self.operator, task, inner.x.nan_to_num(), task.limit, memory)
        return after(inner._replace(products=0), result)

    def _judge(self, memory: Memory, result: LinearResult) -> None:
        """Whether the inverse is worth keeping."""
        memory.stale = bool((result.steps > self._patience(memory)).any()) or not finished(result.converged)

    def _patience(self, memory: Memory) -> int:
        """Steps with an inverse of an earlier matrix that cost as much as to make another."""
        if memory.chain:
            return min(2 * memory.colours, self.solver.patience)
        return PATIENCE_WITH_BAND if memory.banded else self.solver.patience

    def _krylov(
        self, operator: LinearOperator, task: _Task, x0: Tensor | None, limit: int, memory: Memory | None = None
    ) -> LinearResult:
        """By CG, or where the matrix is not definite by GMRES, preconditioned by the inverse of the memory, if that serves."""
        inverse = memory if memory is not None and memory.serves(task.b) else None
        how = "" if inverse is None else f", preconditioned by {inverse.title} of an earlier Jacobian"
        b, options = task.b, task.options
        sign = self._sign()
        result: LinearResult | None = None
        if sign:
            self._note("CG" + how)
            minus = sign < 0
            preconditioner = NegativeInverse(inverse) if inverse is not None and minus else inverse
            bound = CG(preconditioner=preconditioner, max_steps=limit).factorize(-operator if minus else operator)
            # A vector-Jacobian product costs half as much as a Jacobian-vector product; entries are at hand by rows.
            pulled = operator is self.operator
            result = bound.iterate(-b if minus else b, pulled, x0=x0, **options)
            if pulled and not task.adjoint:
                result = self._checked(task, result)
            if values_hidden() or finished(~result.breakdown):
                return result
            x0 = result.x.nan_to_num()
            if self.memory is not None:
                self.memory.sign = 0
        self._note("GMRES" + how)
        gmres = GMRES(restart=self.solver.restart, preconditioner=inverse, max_steps=limit).factorize(operator)
        return after(result, gmres.iterate(b, task.adjoint, x0=x0, **options))

    def _checked(self, task: _Task, result: LinearResult) -> LinearResult:
        """Of A x = b, solved by products with Aᵀ for they seemed the same: broken down where they are not. An inexact Newton step needs
        no more than that they were the same at first, and are looked at again where it gets nowhere."""
        if self.operator.symmetric or values_hidden() or not finished(torch.as_tensor(task.relative < EXACT)):
            return result
        size = euclidean_norm(task.b)
        residual = euclidean_norm(task.b - self.operator.matvec(result.x))
        eps = torch.finfo(task.b.dtype).eps
        same = residual <= 2 * (result.residual_norm + eps**SAME_PRODUCT * size)
        return result._replace(
            residual_norm=residual,
            converged=result.converged & same,
            breakdown=result.breakdown | ~same,
            products=result.products + 1,
        )

    def _note(self, used: str) -> None:
        if self.memory is not None:
            self.memory.note(used)

    def _sign(self) -> int:
        """1 or −1 where A is symmetric and, as far as is known, definite; else 0."""
        operator, memory = self.operator, self.memory
        if memory is None or values_hidden():
            return int(operator.positive_definite)
        masked = isinstance(operator, Masked)
        if memory.sign is None or memory.masked != masked:
            memory.sign, memory.masked = probed(operator), masked
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


class Blocks(LinearOperator):
    """A batch of sparse matrices as the blocks of one, for products that are not recorded."""

    def __init__(self, matrix: Sparse) -> None:
        super().__init__(matrix.shape, matrix.dtype, matrix.device)
        self.of = matrix

    @cached_property
    def _rows(self) -> Tensor:
        return self.of.pattern.matrix(self.of.values)

    @cached_property
    def _columns(self) -> Tensor:
        return self.of.pattern.transposed.matrix(self.of.pattern.transposed_values(self.of.values))

    def matvec(self, x: Tensor) -> Tensor:
        return (self._rows @ x.reshape(-1)).view(x.shape)

    def rmatvec(self, y: Tensor) -> Tensor:
        return (self._columns @ y.reshape(-1)).view(y.shape)


class NegativeInverse:
    """−M of an inverse M."""

    def __init__(self, inverse: Preconditioner) -> None:
        self.inverse = inverse

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        return -self.inverse.solve(b, adjoint)
