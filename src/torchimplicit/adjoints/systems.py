"""The two systems that the heart solves: the user's condition, and the linear systems in its Jacobian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import or_
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchimplicit.adjoints.function import Solved, in_some
from torchimplicit.adjoints.gauge import solve_singular, unseen
from torchimplicit.adjoints.in_graph import solve_in_graph
from torchimplicit.adjoints.solving import LinearisedSolver, LinearSettings, Tiled
from torchimplicit.adjoints.well_posed import Diagnosis, LinearSolution
from torchimplicit.autograd.products import Linearisation
from torchimplicit.autograd.transforms import occurs, tracing
from torchimplicit.condition import Condition, Kind
from torchimplicit.linear import LU, Auto, LinearResult
from torchimplicit.linear.iteration import error_of, linear_status
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.solution import Record, SolveInfo, SolveStats
from torchimplicit.status import Status, announce, named, report

TINY = 64  # entries of all Jacobians of the batch up to which the backward forms them anew: they cost little more than one product


class Derivative(Kind):
    """The condition of a derivative: A w − b."""

    name = "derivative"


@dataclass(frozen=True)
class ConditionSystem:
    """The user's condition, and the way its root is found.

    find : (condition, z0, tensors) -> root, facts and inverse: the forward solve.
    linearised : the condition linearised at the root, in z and in all tensors, where the forward solve has left that behind.
    """

    own_operator: ClassVar[bool] = True
    condition: Condition
    find: Callable[[Condition, Tensor, Sequence[Tensor]], Solved]
    settings: LinearSettings
    batch_shape: torch.Size
    record: Record
    linearised: Linearisation | None = None

    def solve(self, z0: Tensor, tensors: Sequence[Tensor]) -> Solved:
        return self.find(self.condition, z0, tensors)

    def vmapped(
        self, size: int, dims: Sequence[int | None], z0: Tensor, tensors: Sequence[Tensor]
    ) -> tuple[ConditionSystem, Tensor, list[Tensor]]:
        larger = replace(self, condition=self.condition.vmapped(size, dims), linearised=None)
        return larger, z0.flatten(0, 1), list(tensors)

    def linear(
        self,
        transpose: bool,
        z: Tensor,
        status: Tensor,
        inverse: Sequence[Tensor],
        tensors: Sequence[Tensor],
        wanted: Sequence[int] = (),
    ) -> tuple[JacobianSystem, list[Tensor]]:
        record = self.record if transpose else None
        system = JacobianSystem(
            self.condition, transpose, len(inverse), self.settings, self.batch_shape, record, tuple(wanted)
        )
        return system, [z, status, *inverse, *tensors]


@dataclass(frozen=True)
class JacobianSystem:
    """A w = b with A = ∂g/∂z at z*, or its transpose. Its tensors are (b, z*, status of z*, *inverse, *tensors of g).

    wanted : the tensors of g whose gradient −wᵀ ∂g/∂x is asked for, where that is known.
    """

    own_operator: ClassVar[bool] = False  # its operator is the Jacobian of ``base``
    linearised: ClassVar[None] = None
    base: Condition
    transpose: bool
    inverses: int
    settings: LinearSettings
    batch_shape: torch.Size
    record: Record | None = None
    wanted: tuple[int, ...] = ()

    @property
    def condition(self) -> Condition:
        """A(z*, x) w − b as a function of everything, so that the derivative of the derivative is exact."""

        def residual(w: Tensor, b: Tensor, z: Tensor, _: Tensor, *rest: Tensor) -> Tensor:
            return self._operator(z, rest[self.inverses :]).apply(w, self.transpose) - b

        return Condition(residual, Derivative())

    def _operator(self, z: Tensor, tensors: Sequence[Tensor], linearisation: Linearisation | None = None) -> Jacobian:
        kind = self.base.kind
        return Jacobian(
            lambda z: self.base(z, *tensors),
            z,
            symmetric=kind.symmetric,
            positive_definite=kind.positive_definite,
            linearisation=linearisation,
        )

    def vmapped(
        self, size: int, dims: Sequence[int | None], w0: Tensor, tensors: Sequence[Tensor]
    ) -> tuple[JacobianSystem, Tensor, list[Tensor]]:
        systems = w0.shape[1]

        def rows(t: Tensor, dim: int | None) -> Tensor:
            return (t.expand(size, *t.shape) if dim is None else t).flatten(0, 1)

        def tiles(t: Tensor, dim: int | None) -> Tensor:
            """An inverse that all share stays as it is: it then serves several right-hand sides."""
            if dim is None:
                return t
            return t.unsqueeze(1).expand(size, systems // t.shape[1], *t.shape[1:]).flatten(0, 2)

        last = 3 + self.inverses
        at = [rows(t, d) for t, d in zip(tensors[:3], dims[:3], strict=True)]
        inverse = [tiles(t, d) for t, d in zip(tensors[3:last], dims[3:last], strict=True)]
        larger = replace(self, base=self.base.vmapped(size, dims[last:]))
        return larger, w0.flatten(0, 1), [*at, *inverse, *tensors[last:]]

    def linear(
        self,
        transpose: bool,
        z: Tensor,
        status: Tensor,
        inverse: Sequence[Tensor],
        tensors: Sequence[Tensor],
        wanted: Sequence[int] = (),
    ) -> tuple[JacobianSystem, list[Tensor]]:
        """The same operator again: this system's own solution plays no part in it."""
        return replace(self, transpose=self.transpose != transpose, record=None, wanted=()), list(tensors[1:])

    def solve(self, w0: Tensor, tensors: Sequence[Tensor]) -> Solved:
        w, facts = self.solve_linearised(tensors, None)
        return Solved(w, facts(), ())

    def vjp(
        self, tensors: Sequence[Tensor], linearised: Linearisation, which: Sequence[int]
    ) -> Sequence[Tensor | None]:
        tiny = tensors[1].numel() * tensors[1].shape[-1] <= TINY
        if self.settings.solver is None and tiny and not self.base.kind.bounded:
            grads = self._vjp_tiny(tensors, linearised, which)
            if grads is not None:
                return grads
        w, _ = self.solve_linearised(tensors, linearised.restricted([0]))
        w = -w  # under its own name: the last product then needs no more memory than those before
        return linearised.restricted([1 + i for i in which]).pull(w)

    def _vjp_tiny(
        self, tensors: Sequence[Tensor], linearised: Linearisation, which: Sequence[int]
    ) -> Sequence[Tensor | None] | None:
        """The same for so few numbers that only the number of operations counts: the Jacobian is factorised anew, and the last
        product checks the residual too. None where anything is unusual, by the criteria of :meth:`solve_linearised`.
        """
        b, z, forward, *rest = tensors
        if Status.NONFINITE in forward.tolist():
            return None
        operator = self._operator(z, rest[self.inverses :], linearised.restricted([0]))
        factors = LU(equilibrate=False).factorize(operator)
        w = factors.solve(b, self.transpose)
        product, *grads = linearised.restricted([0, *(1 + i for i in which)]).pull(-w)
        if product is None:
            return None
        norms = torch.linalg.vector_norm(torch.stack((b + product, b, w)), dim=-1)
        pivots, finfo = factors.pivots().abs().tolist(), torch.finfo(z.dtype)
        for residual, size_b, size_w in norms.mT.tolist():
            solved = residual <= self.settings.allowed(size_b)
            if not (solved and finfo.tiny**0.25 < size_b < finfo.max**0.25 and size_w < torch.inf):
                return None
        if not all(min(row) > finfo.eps**0.5 * max(row) for row in pivots):
            return None
        if not self.base.kind.linear:
            at = self._solved(operator, b, w, rest)
            if occurs(at.doubtful(forward == 0, *self.settings.tolerance.largest(factors.solve(operator.value), z))):
                return None

        def facts(products: int = operator.products + 1) -> SolveStats:
            status = torch.zeros(b.shape[0], dtype=torch.int64, device=b.device)
            return SolveStats.counted(status, status + 1, norms[0], error_of(w, b, norms[0]), 0, products)

        self._note(facts)
        return grads

    def _solved(self, operator: Jacobian, b: Tensor, w: Tensor, rest: Sequence[Tensor]) -> LinearSolution:
        """A solution w, as it is looked at."""
        settings, near_identity = self.settings, self.base.kind.near_identity
        permitted = partial(self.base.permitted, tensors=rest[self.inverses :])
        earlier = self.inverse(rest) if settings.inverse_is_earlier else None
        return LinearSolution(operator, b, w, self.transpose, settings.tolerance, permitted, near_identity, earlier)

    def solve_linearised(
        self, tensors: Sequence[Tensor], linearisation: Linearisation | None
    ) -> tuple[Tensor, Callable[[], SolveStats]]:
        """w and what makes the facts, from a linearisation of g in z at z*, or from one evaluation of g."""
        if tracing():
            return solve_in_graph(self, Derivative(), tensors)
        b, z, forward, *rest = tensors
        operator = self._operator(z, rest[self.inverses :], linearisation)
        # A row without a root has no derivative: what is asked of it is reported, and the others go on.
        unusable = forward == Status.NONFINITE
        refused = unusable & (b != 0).any(-1) if occurs(unusable) else None
        if refused is not None:
            b = torch.where(unusable.unsqueeze(-1), 0, b)
        solver = LinearisedSolver(self.settings, operator, self.inverse(rest), b, self.transpose)
        result = solver.solve()
        singular = solver.singular()
        gauge = singular is not None and occurs(singular)
        if singular is not None and gauge:
            result, singular = self._beside_a_gauge(operator, result, singular & (b != 0).any(-1), (b, z, *rest))
        found: Diagnosis | None = None
        if not (self.base.kind.linear or solver.truncated):
            rows = result.converged & (forward == 0)
            rows = rows if singular is None else rows & ~singular
            found = solver.look(self._solved(operator, b, result.x, rest), rows, gauge)
        causes = [] if found is None else [(found.singular, Status.SINGULAR), (found.off, Status.INACCURATE)]
        causes += [] if singular is None else [(singular, Status.SINGULAR)]
        undecided = self._undecided(b, z, forward, rest)
        causes += [] if undecided is None else [(undecided, Status.DEGENERATE)]
        causes += [] if refused is None else [(refused, Status.NONFINITE)]
        w, status = result.x, torch.zeros_like(result.steps)
        failed = occurs(reduce(or_, (mask for mask, _ in causes), ~result.converged))
        if failed:
            status = linear_status(result)
            for mask, cause in causes:
                status = torch.where(mask, cause, status)
            if self.settings.on_failure == "nan":
                w = torch.where((status == Status.CONVERGED).unsqueeze(-1), w, torch.nan)
            else:  # one row's overflow must not reach the others through tensors that they share
                w = torch.where(w.isfinite().all(-1, keepdim=True), w, 0)
        error = error_of(result.x, b, result.residual_norm)
        counts = 1 + (0 if found is None else found.evaluations), operator.products
        facts = partial(SolveStats.counted, status, result.steps, result.residual_norm, error, *counts)
        self._note(facts)
        if failed and not solver.truncated:
            if found is not None and occurs(found.off):
                announce(self._inaccurate(found, z), self.settings.on_failure)
            limit = self.settings.limit(b)
            others = torch.where(status == Status.INACCURATE, Status.CONVERGED, status)
            how = self.settings.on_failure
            report(Derivative.name, others, result.residual_norm, limit, result.steps, how, what_of="residual")
        return w, facts

    def _undecided(self, b: Tensor, z: Tensor, forward: Tensor, rest: Sequence[Tensor]) -> Tensor | None:
        """Systems that have a derivative to each side only, and are asked for one."""
        if not self.base.kind.bounded:
            return None
        with torch.no_grad():
            error = self.settings.tolerance.each(z)
            undecided = self.base.kind.undecided(self.base.at(rest[self.inverses :]), z, error)
        return None if undecided is None else undecided & (forward == Status.CONVERGED) & (b != 0).any(-1)

    def _beside_a_gauge(
        self, operator: Jacobian, result: LinearResult, singular: Tensor, tensors: Sequence[Tensor]
    ) -> tuple[LinearResult, Tensor]:
        """Accept solutions beside a singular Jacobian where the gradients do not depend on the directions in which z* and u may move
        freely. Returns the result, and which systems are still without a derivative."""
        b, z, *rest = tensors
        if not (self.transpose and self.wanted and occurs(singular)) or operator.shape[-1] > Auto.dense_limit:
            return result, singular
        u, *vectors, solvable = solve_singular(operator.to_dense().mT, b)
        rows = singular & solvable
        if not occurs(rows):
            return result, singular
        at = rest[self.inverses :]
        condition = in_some(self.base, z, at, self.wanted)
        g = Linearisation(condition, [at[i] for i in self.wanted])
        of_null, of_other = (g.pull(torch.where(rows.unsqueeze(-1), vector, 0)) for vector in vectors)
        if not unseen(of_null, of_other):
            return result, singular
        residual = torch.linalg.vector_norm(b - operator.apply(u, True), dim=-1)
        x = torch.where(rows.unsqueeze(-1), u, result.x)
        residual = torch.where(rows, residual, result.residual_norm)
        return result._replace(x=x, residual_norm=residual, converged=result.converged | rows), singular & ~rows

    def _inaccurate(self, found: Diagnosis, z: Tensor) -> str:
        """What is said of systems whose z is off."""
        rows = found.off.nonzero().flatten()
        worst = rows[found.excess[rows].argmax()]
        bound = self.settings.tolerance.bound(z)[worst].min()
        return (
            f"The derivative is not that of the {self.base.kind.name}. {named(rows, z.shape[0])}: "
            f"{Status.INACCURATE.name.lower()}, z* off by about {float(found.excess[worst] * bound):.3g} (allowed "
            f"{float(bound):.3g}): {Status.INACCURATE.prose}"
        )

    def _note(self, facts: Callable[[], SolveStats]) -> None:
        """Keep what makes the facts, for those who ask."""
        if self.record is not None:
            self.record.backward = partial(_info, facts, self.batch_shape)

    def inverse(self, rest: Sequence[Tensor]) -> Any:
        """The forward solver's inverse, if it left one, as an object with ``solve`` and ``suspicious``."""
        return Tiled(self.settings.inverse(rest[: self.inverses]), rest[0].shape[0]) if self.inverses else None


def _info(facts: Callable[[], SolveStats], batch_shape: torch.Size) -> SolveInfo:
    return facts().info(batch_shape, Record(Derivative.name))
