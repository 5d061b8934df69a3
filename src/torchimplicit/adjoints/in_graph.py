"""The linear system of a derivative while a graph is made: what is decided in plain code is computed there always, and masked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchimplicit.adjoints.at_solution import CHANGE, FAR, doubt
from torchimplicit.adjoints.posed import Derivative, Found, Posed
from torchimplicit.graph.hoisting import hoisted
from torchimplicit.graph.loop import Operands
from torchimplicit.linear import GMRES, LU, MINRES, LinearOperator, LinearResult
from torchimplicit.linear.binding import bind
from torchimplicit.linear.factors import DirectSolver
from torchimplicit.linear.solver import LinearSolver, Preconditioner
from torchimplicit.loop.settings import LoopSettings
from torchimplicit.loop.solve import solve
from torchimplicit.norms import largest
from torchimplicit.solvers.anderson import Anderson
from torchimplicit.solvers.equations import Equations
from torchimplicit.status import Status
from torchimplicit.tolerance import Tolerance

DENSE = 256  # largest n up to which that of a root is factorised
FACTORISED_ENTRIES = 2**12  # of all Jacobians of the batch, up to which that of a fixed point is factorised too


def solve_in_graph(posed: Posed) -> Found:
    """The solution."""
    b, z, named, kind = posed.b, posed.z, posed.settings.solver, posed.base.kind
    n = z.shape[-1]
    small = isinstance(z.shape[0], int) and z.numel() * n <= FACTORISED_ENTRIES
    if named is None and kind.linear and posed.inverse is not None:
        found = _by_inverse(posed, posed.inverse)
    elif isinstance(named, DirectSolver) or (named is None and (small or (not kind.near_identity and n <= DENSE))):
        return _by_factors(posed)
    elif named is None and kind.near_identity:
        found = _by_steps(posed)
    else:
        found = _among_free(posed) if named is None and kind.bounded and posed.transpose else _by_products(posed)
    if posed.transpose and not kind.linear:
        # The error of z as the loss sees it, v·w = u·g, is one that it has.
        seen = (found.result.x * posed.base(z, *posed.tensors)).sum(-1).abs()
        off = seen > FAR * (posed.settings.tolerance.each(z) * b.abs()).sum(-1)
        found.causes.append((off & found.result.converged, Status.INACCURATE))
    return found


def _found(posed: Posed, w: Tensor, residual: Tensor, *causes: tuple[Tensor, Status]) -> Found:
    """What one solution by factors has found."""
    converged = residual <= posed.settings.limit(posed.b)
    no = torch.zeros_like(converged)
    result = LinearResult(w, residual, torch.ones_like(converged, dtype=torch.int64), converged, ~converged, no, 1)
    return Found(result, list(causes), 1, 1)


def _by_factors(posed: Posed) -> Found:
    """By the factors of the Jacobian at z itself."""
    b, z, tolerance = posed.b, posed.z, posed.settings.tolerance
    operator = posed.operator()
    named = posed.settings.solver
    factors = (named if isinstance(named, DirectSolver) else LU(equilibrate=z.shape[-1] > 1)).factorize(operator)
    w = factors.solve(b, posed.transpose)
    residual = torch.linalg.vector_norm(b - operator.apply(w, posed.transpose), dim=-1)
    asked = (b != 0).any(-1)
    pivots = factors.pivots().abs()
    floor = 8 * z.shape[-1] ** 0.5 * torch.finfo(z.dtype).eps
    singular = ~((pivots > floor * pivots.amax(-1, keepdim=True)) & pivots.isfinite()).all(-1) & asked
    if posed.base.kind.linear:
        return _found(posed, w, residual, (singular, Status.SINGULAR))
    correction = factors.solve(operator.value)
    size, allowed = tolerance.largest(correction, z)
    off = (size > FAR * allowed) & asked
    beside = operator.moved(z - torch.where(correction.isfinite(), correction, 0)).apply(w, posed.transpose)
    change = largest(factors.solve(beside - b, posed.transpose))
    changes = ~(change <= CHANGE * largest(w)) & (size / allowed > doubt(tolerance, allowed))
    singular = singular | (changes & ~off & asked)
    return _found(posed, w, residual, (off, Status.INACCURATE), (singular, Status.SINGULAR))


def _by_inverse(posed: Posed, inverse: Preconditioner) -> Found:
    """By the factors that a linear forward solve has left, refined once."""
    b, operator = posed.b, posed.operator()
    first = inverse.solve(b, posed.transpose)
    rest = b - operator.apply(first, posed.transpose)
    w = first + inverse.solve(rest, posed.transpose)
    size, refined = (torch.linalg.vector_norm(v, dim=-1) for v in (rest, b - operator.apply(w, posed.transpose)))
    better = refined < size
    w, residual = torch.where(better.unsqueeze(-1), w, first), torch.where(better, refined, size)
    missed = (residual > posed.settings.limit(b)) & w.isfinite().all(-1) & residual.isfinite()
    return _found(posed, w, residual, (missed, Status.SINGULAR))


def _by_products(posed: Posed) -> Found:
    """By a Krylov method."""
    automatic = MINRES() if posed.base.kind.symmetric else GMRES()
    return Found(_iterated(posed, posed.settings.solver or automatic, posed.b, *_product(posed)), [], 1, 1)


def _iterated(
    posed: Posed, solver: LinearSolver, b: Tensor, product: Callable[[Tensor], Tensor], known: Operands
) -> LinearResult:
    settings = posed.settings
    state = bind(solver, _Products(b, product, known))
    return state.iterate(b, rtol=settings.rtol, atol=settings.atol, max_steps=settings.max_steps)


def _among_free(posed: Posed) -> Found:
    """Aᵀ w = b for a minimum within bounds. A row of A is that of the Hessian H where the unknown is free, of the identity where it is
    held: of the free ones H w = b, which is symmetric, and then each held one follows from its own equation. Of all together
    restarted GMRES would lose itself in the two units."""
    b, z = posed.b, posed.z
    product, known = _product(posed)
    operands = Operands((posed.base.kind.held(posed.base.at(posed.tensors), z),), outer=known)
    (held,) = operands.tensors

    def symmetric(v: Tensor) -> Tensor:
        (held,) = operands.tensors
        return torch.where(held, v, product(torch.where(held, 0, v)))

    result = _iterated(posed, MINRES(), torch.where(held, 0, b), symmetric, operands)
    free = torch.where(held, 0, result.x)
    return Found(result._replace(x=torch.where(held, b - product(free), free)), [], 1, 1)


def _by_steps(posed: Posed) -> Found:
    """By accelerated plain steps, for A is the identity less a contraction."""
    b, settings = posed.b, posed.settings
    product, known = _product(posed)
    operands = Operands((b,), outer=known)
    equations = Equations(lambda w: product(w) - operands.tensors[0], Derivative(), operands=operands)
    solver = Anderson(plain_below=0.5)
    found = solve(
        solver,
        equations,
        b,
        LoopSettings(Tolerance(settings.rtol, settings.atol), settings.max_steps or solver.max_steps),
    )
    converged, exhausted, diverged = (
        found.status == status for status in (Status.CONVERGED, Status.MAX_STEPS, Status.DIVERGED)
    )
    residual = b.shape[-1] ** 0.5 * found.residual
    result = LinearResult(found.z, residual, found.steps, converged, ~(converged | exhausted), exhausted, 1)
    return Found(result, [(diverged, Status.DIVERGED)], 1, 1)


def _product(posed: Posed) -> tuple[Callable[[Tensor], Tensor], Operands]:
    """The product with A for a loop, and what it uses."""
    A = posed.operator()
    operands = A.operands

    def product(w: Tensor, *names: Any) -> Tensor:
        with operands.named(names):
            return A.apply(w, posed.transpose)

    return hoisted(product, posed.b, operands.all)


class _Products(LinearOperator):
    """A, or its transpose, as a loop knows it."""

    def __init__(self, like: Tensor, product: Callable[[Tensor], Tensor], known: Operands) -> None:
        super().__init__((*like.shape, like.shape[-1]), like.dtype, like.device)
        self._product, self._known = product, known

    def matvec(self, x: Tensor) -> Tensor:
        return self._product(x)

    def rmatvec(self, y: Tensor) -> Tensor:
        raise NotImplementedError("a Krylov method asks for one of the two products")

    @property
    def operands(self) -> Operands:
        return self._known
