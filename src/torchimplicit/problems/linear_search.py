"""How the solution of a linear system is searched: by a linear solver, applied to A itself wherever it is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import occurs, tracing
from torchimplicit.linear import LinearOperator
from torchimplicit.linear.binding import bind
from torchimplicit.linear.direct import Direct
from torchimplicit.linear.factors import Factors
from torchimplicit.linear.iteration import IterativeSolver, IterativeState, error_of
from torchimplicit.linear.shared_inverse import SharedFactors, SharedInverse
from torchimplicit.linear.solver import Bound, Left, LinearResult, LinearSolver, linear_status
from torchimplicit.loop.search import Inside, Search
from torchimplicit.loop.settings import LoopSettings
from torchimplicit.loop.solve import SearchResult
from torchimplicit.private import pytree
from torchimplicit.solvers.equations import Equations
from torchimplicit.status import Status
from torchimplicit.tolerance import Tolerance


class BatchedSystem(NamedTuple):
    """A b = x as a linear solver takes it: the dimensions that A does not have come first.

    order : of the dimensions of the batch of solutions, as they stand in those of b (*lead, *batch_shape, n).
    """

    operator: LinearOperator
    b: Tensor
    order: tuple[int, ...]

    def rows(self, t: Tensor) -> Tensor:
        """Facts (*lead, *batch_shape) of the systems as rows (B,), or vectors (*lead, *batch_shape, n) as (B, n)."""
        batch = len(self.order)
        back = sorted(range(batch), key=self.order.__getitem__)
        return t.permute(*back, *range(batch, t.ndim)).flatten(0, batch - 1) if batch else t.unsqueeze(0)

    @property
    def which(self) -> Tensor:
        """The matrix of each row, (B,)."""
        batch = self.operator.batch_shape
        numbers = torch.arange(math.prod(batch), device=self.b.device).reshape(batch)
        return self.rows(numbers.expand(self.b.shape[:-1]))


@dataclass
class LinearSearch(Search):
    """A linear solver applied to A, or, where A is not known as such, to the Jacobian of A z − b.

    operator, b : as they were given; inside a transform their tensors are not to be used, but those that ``inside`` tells.
    """

    solver: LinearSolver
    operator: LinearOperator | None
    b: Tensor
    tolerance: Tolerance
    max_steps: int | None
    factors: Factors | None = field(default=None, init=False)
    kept: list[SharedFactors] = field(
        default_factory=list, init=False
    )  # inverses that are no tensors, each by its number
    preconditioner: SharedInverse | None = field(default=None, init=False)

    def __call__(self, equations: Equations, z0: Tensor, settings: LoopSettings, inside: Inside | None) -> SearchResult:
        if self.operator is None or (inside is not None and not is_made_of_tensors(self.operator)):
            jacobian = equations.jacobian(z0)
            rows = BatchedSystem(jacobian, -jacobian.value, (0,))
            found = self._found(rows)[0]
        elif inside is not None:
            found, products = self._found(self._posed_inside(inside), as_tensors=False)
            equations.products += products
        else:
            found = self.recorded(equations, z0, settings, checkpoint=False)
        known = self.operator is not None and is_made_of_tensors(self.operator)
        return found if known else self._check_linear(equations, found)

    def recorded(self, equations: Equations, z0: Tensor, settings: LoopSettings, checkpoint: bool) -> SearchResult:
        assert self.operator is not None
        found, products = self._found(BatchedSystem(self.operator, self.b, tuple(range(self.b.ndim - 1))))
        equations.products += products
        return found

    def _posed_inside(self, inside: Inside) -> BatchedSystem:
        """A and b from their tensors, which have a dimension in front for each vmap over them. The levels over b alone, like its
        own leading dimensions, are further right-hand sides."""
        assert self.operator is not None
        leaves, tree = pytree.tree_flatten(self.operator)
        levels = range(len(inside.vmaps))
        of_A = [k for k in levels if any(dim is not None for dim in inside.vmaps[k].dims[: len(leaves)])]
        sizes = [inside.vmaps[k].size for k in of_A]
        tensors = []
        for i, leaf in enumerate(inside.tensors[: len(leaves)]):
            for place, k in enumerate(of_A):
                leaf = leaf if inside.vmaps[k].dims[i] is not None else leaf.unsqueeze(place)
            tensors.append(leaf.expand((*sizes, *leaf.shape[len(sizes) :])))
        b = inside.tensors[len(leaves)]
        for k in levels:
            b = b if inside.vmaps[k].dims[len(leaves)] is not None else b.unsqueeze(k)
        batch = self.b.shape[:-1]
        own = b.shape[len(levels) : -1]
        b = b.reshape(*b.shape[: len(levels)], *(1,) * (len(batch) - len(own)), *own, b.shape[-1])
        b = b.expand(*(vmap.size for vmap in inside.vmaps), *batch, b.shape[-1])
        lead = len(batch) - len(self.operator.batch_shape)
        dims = range(len(levels), len(levels) + len(batch))
        order = (*(k for k in levels if k not in of_A), *dims[:lead], *of_A, *dims[lead:])
        return BatchedSystem(pytree.tree_unflatten(tensors, tree), b.permute(*order, b.ndim - 1), order)

    def _found(self, posed: BatchedSystem, as_tensors: bool = True) -> tuple[SearchResult, int]:
        """The solution, and the number of products with the operator. Its error is Newton's correction by the factors, where there
        are some; else relatively as large as the residual. Dense factors are left behind ``as_tensors``."""
        operator, b = posed.operator, posed.b
        state = bind(self.solver, operator)
        direct = state.direct
        self._keep(posed, state, as_tensors)
        result = state.iterate(b, rtol=self.tolerance.rtol, atol=self.tolerance.atol, max_steps=self.max_steps)
        status = _status(operator, direct, result)
        products = result.products
        with torch.no_grad():
            bound = self.tolerance.atol + self.tolerance.rtol * torch.linalg.vector_norm(b, dim=-1)
            bound, error = error_of(result.x, b, bound), error_of(result.x, b, result.residual_norm)
            if direct is not None and operator.shape[-1]:
                correction = direct.solve(b - operator.apply(result.x)).abs().amax(-1)
                error = torch.where(correction.isnan() & result.converged, error, correction)
                n, known = operator.shape[-1], operator.structure
                products += 1 + (0 if operator.explicit else int(min(n, known.lower + known.upper + 1)))
        shape = result.converged.shape
        facts = (status, result.steps, result.residual_norm, error, bound)
        status, steps, residual, error, bound = (posed.rows(t.expand(shape)) for t in facts)
        z = posed.rows(result.x)
        z = torch.view_as_real(z.resolve_conj()).flatten(-2) if z.is_complex() else z
        return SearchResult(z, status, steps, residual, error, bound), products

    def _keep(self, posed: BatchedSystem, state: Bound, as_tensors: bool) -> None:
        """What the backward will solve by."""

        direct, preconditioner = state.direct, state.preconditioner
        of_rows = posed.operator.batch_shape, posed.which, posed.b.is_complex()
        self.factors = direct if isinstance(direct, Factors) and (as_tensors or tracing()) else None
        if direct is not None and self.factors is None and not tracing():
            self.kept.append(SharedFactors(direct, *of_rows))
        self.preconditioner = None if preconditioner is None else SharedInverse(preconditioner, *of_rows)

    def inverse(self, found: SearchResult) -> tuple[Tensor, ...]:
        """The tensors of factors; or for each row which of those that are no tensors, and which matrix of its batch."""
        if self.factors is not None:
            systems = self.factors.tensors[0].shape[:-2]
            return tuple(t.reshape(math.prod(systems), *t.shape[len(systems) :]) for t in self.factors.tensors)
        if not self.kept or not len(found.z):
            return ()
        which = self.kept[-1].which
        return (torch.stack([torch.full_like(which, len(self.kept) - 1), which], -1),)

    def from_tensors(self, tensors: Sequence[Tensor]) -> Left:
        if tensors[0].dtype == torch.int64:
            number, which = int(tensors[0][0, 0]), tensors[0][:, 1]
            return self.kept[number].at(which)
        assert self.factors is not None
        factors = type(self.factors)(tensors)
        return _Complex(factors) if tensors[0].is_complex() else factors

    def _check_linear(self, equations: Equations, found: SearchResult) -> SearchResult:
        """Raise ValueError where a solution z of the linear system has A(z) ≠ b, or A(2 z) ≠ 2 b: the callable A is not linear. In a
        graph, which cannot raise, such a system has stagnated."""
        once = equations.residual(found.z)
        start = equations.residual(torch.zeros_like(found.z))
        twice = equations.residual(2 * found.z) + start
        bound = self.tolerance.atol + self.tolerance.rtol * torch.linalg.vector_norm(start, dim=-1)
        residual = torch.linalg.vector_norm(torch.stack([once, twice / 2]), dim=-1).amax(0)
        rounding = torch.finfo(residual.dtype).eps ** 0.5 * (1 + bound)
        wrong = (found.status == Status.CONVERGED) & (residual > 2 * bound + rounding)
        if tracing():
            return replace(found, status=torch.where(wrong, Status.STAGNATED, found.status))
        if bool(wrong.any()):
            raise ValueError(
                "the callable A is not linear in z: A(z) differs from b at the solution of the system that its products "
                f"define (by {float(residual[wrong].max()):.3g}). Leave constants out of A (subtract A(0) from b); for a "
                "nonlinear equation use root."
            )
        return found


class _Complex:
    """The inverse of a complex matrix, for vectors of twice as many reals."""

    def __init__(self, factors: Factors) -> None:
        self.factors = factors

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        x = self.factors.solve(torch.view_as_complex(b.unflatten(-1, (-1, 2)).contiguous()), adjoint)
        return torch.view_as_real(x).flatten(-2)

    @property
    def suspicious(self) -> Tensor:
        return self.factors.suspicious


@dataclass(frozen=True)
class AsBefore:
    """The forward's iterative solver for the backward, with the preconditioner that is bound to the forward's operator."""

    solver: IterativeSolver
    search: LinearSearch

    def factorize(self, operator: LinearOperator) -> IterativeState:
        """Its state for this operator."""
        return replace(self.solver, preconditioner=self.search.preconditioner).factorize(operator)


def is_made_of_tensors(operator: LinearOperator) -> bool:
    """Whether an operator is linear by construction, and can be made anew of other tensors."""
    return bool(type(operator).parts) and all(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(operator))


def _status(operator: LinearOperator, direct: Direct | None, result: LinearResult) -> Tensor:
    """How each system has ended; direct solves tell whether it is singular."""
    status = linear_status(result)
    if direct is None or not occurs(direct.singular):
        return status
    singular = direct.singular if direct.final else direct.singular & ~result.converged
    status = torch.where(singular, Status.SINGULAR, status)
    finite = operator.apply(torch.zeros_like(result.x)).isfinite().all(-1) & result.residual_norm.isfinite()
    return torch.where(finite, status, Status.NONFINITE)
