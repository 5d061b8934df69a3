"""The linear system of a derivative while a graph is made: what is decided in plain code is computed there always, and masked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from torchimplicit.adjoints.solving import LinearSettings
from torchimplicit.adjoints.well_posed import CHANGE, FAR, doubt, largest
from torchimplicit.condition import Condition, Kind
from torchimplicit.graph.hoisting import hoisted
from torchimplicit.graph.loop import Operands
from torchimplicit.graph.reports import reported
from torchimplicit.linear import GMRES, LU, LinearOperator
from torchimplicit.linear.factors import DirectSolver
from torchimplicit.linear.iteration import error_of, linear_status
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.loop.solve import solve
from torchimplicit.loop.stopping import Stopping
from torchimplicit.solution import SolveStats
from torchimplicit.solvers.anderson import Anderson
from torchimplicit.solvers.equations import Equations
from torchimplicit.status import Status
from torchimplicit.tolerance import Tolerance

DENSE = 256  # largest n up to which that of a root is factorised
ENTRIES = 2**12  # of all Jacobians of the batch, up to which that of a fixed point is factorised too


class System(Protocol):
    """A w = b with A = ∂g/∂z, or its transpose, g being ``base``; ``inverses`` counts the tensors of the forward's inverse."""

    @property
    def base(self) -> Condition: ...

    @property
    def transpose(self) -> bool: ...

    @property
    def inverses(self) -> int: ...

    @property
    def settings(self) -> LinearSettings: ...

    def inverse(self, rest: Sequence[Tensor]) -> Any: ...


def solve_in_graph(system: System, kind: Kind, tensors: Sequence[Tensor]) -> tuple[Tensor, Callable[[], SolveStats]]:
    """w with A w = b, and what makes the facts, for the tensors of a ``JacobianSystem``."""
    b, z, forward, *rest = tensors
    of_g = rest[system.inverses :]
    unusable = forward == Status.NONFINITE
    b = torch.where(unusable.unsqueeze(-1), 0, b)
    n, named = z.shape[-1], system.settings.solver
    small = isinstance(z.shape[0], int) and z.numel() * n <= ENTRIES
    how: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    if named is None and system.base.kind.linear and system.inverses:
        how = partial(_by_inverse, system.inverse(rest))
    elif isinstance(named, DirectSolver) or (
        named is None and (small or (not system.base.kind.near_identity and n <= DENSE))
    ):
        how = _by_factors
    else:
        how = _by_steps if named is None and system.base.kind.near_identity else _by_products
    w, residual, status, steps = how(system, kind, b, z, of_g)
    if system.transpose and how is not _by_factors and not system.base.kind.linear:
        # The error of z as the loss sees it, v·w = u·g, is one that it has.
        seen = (w * system.base(z, *of_g)).sum(-1).abs()
        off = seen > FAR * (system.settings.tolerance.each(z) * b.abs()).sum(-1)
        status = torch.where(off & (status == Status.CONVERGED), Status.INACCURATE, status)
    status = torch.where(unusable & (tensors[0] != 0).any(-1), Status.NONFINITE, status)
    limit = system.settings.limit(b)
    if system.settings.on_failure == "nan":
        w = torch.where((status == Status.CONVERGED).unsqueeze(-1), w, torch.nan)
    else:
        w = torch.where(w.isfinite().all(-1, keepdim=True), w, 0)
        w = reported(w, status, residual, limit, steps, kind.name, system.settings.on_failure, "residual")
    return w, partial(SolveStats.counted, status, steps, residual, error_of(w, b, residual), 1, 1)


def _by_factors(
    system: System, kind: Kind, b: Tensor, z: Tensor, tensors: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By the factors of the Jacobian at z itself."""

    def g(z: Tensor) -> Tensor:
        return system.base(z, *tensors)

    operator = Jacobian(g, z)
    factors = (system.settings.solver or LU(equilibrate=z.shape[-1] > 1)).factorize(operator)
    w = factors.solve(b, system.transpose)
    residual = torch.linalg.vector_norm(b - operator.apply(w, system.transpose), dim=-1)
    limit = system.settings.limit(b)
    status = torch.where(residual <= limit, Status.CONVERGED, Status.STAGNATED)
    status = torch.where(w.isfinite().all(-1) & residual.isfinite(), status, Status.NONFINITE)
    asked = (b != 0).any(-1)
    pivots = factors.pivots().abs()
    floor = 8 * z.shape[-1] ** 0.5 * torch.finfo(z.dtype).eps
    singular = ~((pivots > floor * pivots.amax(-1, keepdim=True)) & pivots.isfinite()).all(-1) & asked
    if not system.base.kind.linear:
        tolerance = system.settings.tolerance
        correction = factors.solve(operator.value)
        size, allowed = tolerance.largest(correction, z)
        off = (size > FAR * allowed) & asked
        beside = operator.moved(z - torch.where(correction.isfinite(), correction, 0)).apply(w, system.transpose)
        change = largest(factors.solve(beside - b, system.transpose))
        changes = ~(change <= CHANGE * largest(w)) & (size > doubt(tolerance, allowed))
        singular = singular | (changes & ~off & asked)
        status = torch.where(off, Status.INACCURATE, status)
    status = torch.where(singular, Status.SINGULAR, status)
    return w, residual, status, torch.ones_like(status)


def _by_inverse(
    inverse: Any, system: System, kind: Kind, b: Tensor, z: Tensor, tensors: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By the factors that a linear forward solve has left, refined once."""
    operator = Jacobian(lambda z: system.base(z, *tensors), z, symmetric=system.base.kind.symmetric)
    first = inverse.solve(b, system.transpose)
    rest = b - operator.apply(first, system.transpose)
    w = first + inverse.solve(rest, system.transpose)
    size, refined = (torch.linalg.vector_norm(v, dim=-1) for v in (rest, b - operator.apply(w, system.transpose)))
    better = refined < size
    w, residual = torch.where(better.unsqueeze(-1), w, first), torch.where(better, refined, size)
    limit = system.settings.limit(b)
    status = torch.where(residual <= limit, Status.CONVERGED, Status.SINGULAR)
    status = torch.where(w.isfinite().all(-1) & residual.isfinite(), status, Status.NONFINITE)
    return w, residual, status, torch.ones_like(status)


def _by_products(
    system: System, kind: Kind, b: Tensor, z: Tensor, tensors: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By a Krylov method."""
    settings = system.settings
    operator = _Products(b, *_product(system, b, z, tensors))
    state = (settings.solver or GMRES()).factorize(operator)
    limits: dict[str, Any] = {"rtol": settings.rtol, "atol": settings.atol, "max_steps": settings.max_steps}
    result = state.iterate(b, **limits)
    return result.x, result.residual_norm, linear_status(result), result.steps


def _by_steps(
    system: System, kind: Kind, b: Tensor, z: Tensor, tensors: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By accelerated plain steps, for A is the identity less a contraction."""
    settings = system.settings
    product, known = _product(system, b, z, tensors)
    operands = Operands((b,), outer=known)
    equations = Equations(lambda w: product(w) - operands.tensors[0], kind, operands=operands)
    solver = Anderson(plain_below=0.5)
    stopping = Stopping(Tolerance(settings.rtol, settings.atol), settings.max_steps or solver.max_steps)
    found = solve(solver, equations, b, stopping)
    size = b.shape[-1] ** 0.5
    return found.z, size * found.residual, found.status, found.steps


def _product(
    system: System, b: Tensor, z: Tensor, tensors: Sequence[Tensor]
) -> tuple[Callable[[Tensor], Tensor], Operands]:
    """The product with A for a loop, and what it uses."""
    operands = Operands((z, *tensors), system.base.call)

    def product(w: Tensor, *names: Any) -> Tensor:
        with operands.named(names):
            z, *tensors = operands.tensors
            return Jacobian(lambda z: system.base(z, *tensors), z).apply(w, system.transpose)

    return hoisted(product, b, operands.all)


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
