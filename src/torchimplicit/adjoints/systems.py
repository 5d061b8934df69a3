"""The two systems that the heart solves: the user's condition, and the linear systems in its Jacobian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchimplicit.adjoints.fused import FusedPullback
from torchimplicit.adjoints.well_posed import SUSPECT, at_a_multiple_root, suspicious
from torchimplicit.condition import Condition, Kind
from torchimplicit.linear import GMRES, LU, Auto, Contraction, LinearResult, Richardson
from torchimplicit.linear.auto import Division, better_of
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.rounding import solved_to_rounding
from torchimplicit.linear.vectors import unpatterned
from torchimplicit.products import Linearisation
from torchimplicit.solution import Facts, Record, SolveInfo
from torchimplicit.solvers.equations import Equations
from torchimplicit.stopping import OnFailure, Status, linear_status, report
from torchimplicit.transforms import finished, occurs

Solved = tuple[Tensor, Facts, tuple[Tensor, ...]]

TINY = 64  # entries of all Jacobians of the batch, up to which they cost hardly more than one product and are made anew
REFINEMENTS = 4  # steps in which the inverse of a Jacobian near z* brings the residual down to tolerance
KRYLOV = 32  # steps of GMRES with an inverse that needs more: it is of a Jacobian farther away
AMPLIFIED = 100  # ‖J‖ ‖w‖ / ‖b‖ from which a Jacobian that has moved may be on its way to a singular one


class Derivative(Kind):
    """The condition of a derivative: A w − b."""

    name = "derivative"


@dataclass(frozen=True)
class LinearSettings:
    """How the linear systems of a derivative are solved, and what is done when that fails.

    forgiving : whether a system that only rounding keeps from its tolerance counts as solved.
    inverse : rebuilds the forward solver's approximate inverse of ∂g/∂z from its tensors.
    near_identity : whether ∂g/∂z may be the identity less a contraction.
    """

    solver: Any
    rtol: float
    atol: float
    max_steps: int | None
    forgiving: bool
    on_failure: OnFailure
    inverse: Callable[[Sequence[Tensor]], Any]
    near_identity: bool


@dataclass(frozen=True)
class ConditionSystem:
    """The user's condition, and the way its root is found.

    find : (condition, z0, tensors) -> root, facts and inverse: the forward solve.
    fused : the products of the backward as one kernel, where every system has converged in kernels.
    linearised : the condition linearised at the root, in z and in all tensors, where the forward solve has left that behind.
    """

    own_operator: ClassVar[bool] = True
    condition: Condition
    find: Callable[[Condition, Tensor, Sequence[Tensor]], Solved]
    settings: LinearSettings
    batch_shape: torch.Size
    record: Record
    fused: FusedPullback | None = None
    linearised: Linearisation | None = None

    def pulled(
        self, v: Tensor, z: Tensor, inverse: Sequence[Tensor], tensors: Sequence[Tensor], which: Sequence[int]
    ) -> list[Tensor | None] | None:
        """The products of the backward for which of the tensors, where one kernel gives them."""
        found = None if self.fused is None else self.fused(v, z, inverse, tensors, which)
        if found is None:
            return None
        grads, facts = found
        self.record.backward = partial(_info, lambda: facts, self.batch_shape)
        return grads

    def solve(self, z0: Tensor, tensors: Sequence[Tensor]) -> Solved:
        return self.find(self.condition, z0, tensors)

    def vmapped(
        self, size: int, dims: Sequence[int | None], z0: Tensor, tensors: Sequence[Tensor]
    ) -> tuple[ConditionSystem, Tensor, list[Tensor]]:
        larger = replace(self, condition=self.condition.vmapped(size, dims), fused=None, linearised=None)
        return larger, z0.flatten(0, 1), list(tensors)

    def linear(
        self, transpose: bool, z: Tensor, status: Tensor, inverse: Sequence[Tensor], tensors: Sequence[Tensor]
    ) -> tuple[JacobianSystem, list[Tensor]]:
        record = self.record if transpose else None
        system = JacobianSystem(self.condition, transpose, len(inverse), self.settings, self.batch_shape, record)
        return system, [z, status, *inverse, *tensors]


@dataclass(frozen=True)
class JacobianSystem:
    """A w = b with A = ∂g/∂z at z*, or its transpose. Its tensors are (b, z*, status of z*, *inverse, *tensors of g)."""

    own_operator: ClassVar[bool] = False  # but that of the system that it was made for
    linearised: ClassVar[None] = None
    base: Condition
    transpose: bool
    inverses: int
    settings: LinearSettings
    batch_shape: torch.Size
    record: Record | None = None

    @property
    def condition(self) -> Condition:
        """A(z*, x) w − b as a function of everything, so that the derivative of the derivative is exact."""

        def residual(w: Tensor, b: Tensor, z: Tensor, _: Tensor, *rest: Tensor) -> Tensor:
            return self._operator(z, rest[self.inverses :]).apply(w, self.transpose) - b

        return Condition(residual, Derivative())

    def _operator(self, z: Tensor, tensors: Sequence[Tensor]) -> Jacobian:
        return Jacobian(lambda z: self.base(z, *tensors), z)

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

    def pulled(self, *_: Any) -> None:
        """Never at once."""

    def linear(
        self, transpose: bool, z: Tensor, status: Tensor, inverse: Sequence[Tensor], tensors: Sequence[Tensor]
    ) -> tuple[JacobianSystem, list[Tensor]]:
        """The same operator again: this system's own solution plays no part in it."""
        return replace(self, transpose=self.transpose != transpose, record=None), list(tensors[1:])

    def solve(self, w0: Tensor, tensors: Sequence[Tensor]) -> Solved:
        w, facts = self.solve_linearised(tensors, None)
        return w, facts(), ()

    def pulled_back(
        self, tensors: Sequence[Tensor], linearised: Linearisation, which: Sequence[int]
    ) -> Sequence[Tensor | None]:
        if self.settings.solver is None and tensors[1].numel() * tensors[1].shape[-1] <= TINY:
            grads = self._pulled_back_tiny(tensors, linearised, which)
            if grads is not None:
                return grads
        w, _ = self.solve_linearised(tensors, linearised.restricted([0]))
        w = -w  # under its own name: the last product then needs no more memory than those before
        return linearised.restricted([1 + i for i in which]).pull(w)

    def _pulled_back_tiny(
        self, tensors: Sequence[Tensor], linearised: Linearisation, which: Sequence[int]
    ) -> Sequence[Tensor | None] | None:
        """The same for so few numbers that only the number of operations counts: the Jacobian is factorised anew, and the last
        product checks the residual. None where anything is out of the ordinary, by the criteria of :meth:`solve_linearised`.
        """
        b, z, forward, *rest = tensors
        if Status.NONFINITE in forward.tolist():
            return None
        operator = Jacobian(self.base.at(rest[self.inverses :]), z, linearisation=linearised.restricted([0]))
        factors = LU(equilibrate=False).factorize(operator)
        w = factors.solve(b, self.transpose)
        product, *grads = linearised.restricted([0, *(1 + i for i in which)]).pull(-w)
        if product is None:
            return None
        norms = torch.linalg.vector_norm(torch.stack((b + product, b, w, operator.value, z)), dim=-1).tolist()
        pivots = factors.pivots().abs().tolist()
        finfo = torch.finfo(z.dtype)
        for residual, size_b, size_w, size_g, size_z in zip(*norms, strict=True):
            solved = residual <= self.settings.atol + self.settings.rtol * size_b
            if not (
                solved and finfo.tiny**0.25 < size_b < finfo.max**0.25 and size_w * size_g <= SUSPECT * size_z * size_b
            ):
                return None
        if not all(min(row) > finfo.eps**0.5 * max(row) for row in pivots):
            return None

        def facts(products: int = operator.products + 1) -> Facts:
            status = torch.zeros(len(norms[0]), dtype=torch.int64, device=device)
            residual = torch.tensor(norms[0], dtype=dtype, device=device)
            return Facts.counted(status, status + 1, residual, torch.full_like(residual, torch.nan), 0, products)

        dtype, device = b.dtype, b.device
        self._note(facts)
        return grads

    def solve_linearised(
        self, tensors: Sequence[Tensor], linearisation: Linearisation | None
    ) -> tuple[Tensor, Callable[[], Facts]]:
        """w and what makes the facts, from a linearisation of g in z at z*, or from one evaluation of g."""
        b, z, forward, *rest = tensors

        def g(z: Tensor) -> Tensor:
            return self.base(z, *rest[self.inverses :])

        operator = Jacobian(g, z, symmetric=self.base.kind.symmetric, linearisation=linearisation)
        # A row without a root has no derivative: what is asked of it is reported, and the others go on.
        unusable = forward == Status.NONFINITE
        refused = unusable & (b != 0).any(-1) if occurs(unusable) else None
        if refused is not None:
            b = torch.where(unusable.unsqueeze(-1), 0, b)
        solver = _Solver(self.settings, operator, self._inverse(rest[: self.inverses], len(b)))
        result = solver.solve(b, self.transpose)
        if self.settings.forgiving and operator.shape[-1] <= Auto.dense_limit and occurs(~result.converged):
            A = operator.to_dense()
            rounded = solved_to_rounding(A.mT if self.transpose else A, b, result.x)
            result = result._replace(converged=result.converged | rounded)
        doubtful = suspicious(operator.value, z, b, result.x)
        moved = solver.moved(b, result.x)
        doubtful = doubtful if moved is None else doubtful | moved
        singular = solver.singular()
        evaluations = 1
        if occurs(doubtful) and occurs(suspects := doubtful & (forward == Status.CONVERGED)):
            looked = Equations(self.base.at(rest[self.inverses :]), self.base.kind)
            found = at_a_multiple_root(looked.jacobian, operator, z, suspects)
            singular = found if singular is None else singular | found
            evaluations += looked.evaluations
            operator.count(looked.products)
        bad = ~result.converged
        bad = bad if singular is None else bad | singular
        bad = bad if refused is None else bad | refused
        w, status = result.x, torch.zeros_like(result.steps)
        failed = occurs(bad)
        if failed:
            status = linear_status(result)
            if singular is not None:
                status = torch.where(singular & (b != 0).any(-1), Status.SINGULAR, status)
            if refused is not None:
                status = torch.where(refused, Status.NONFINITE, status)
            if self.settings.on_failure == "nan":
                w = torch.where((status == Status.CONVERGED).unsqueeze(-1), w, torch.nan)
            else:  # one row's overflow must not reach the others through tensors that they share
                w = torch.where(w.isfinite().all(-1, keepdim=True), w, 0)
        error = torch.full_like(result.residual_norm, torch.nan)
        facts = partial(
            Facts.counted, status, result.steps, result.residual_norm, error, evaluations, operator.products
        )
        self._note(facts)
        if failed and not getattr(self.settings.solver, "truncated", False):
            bound = self.settings.atol + self.settings.rtol * torch.linalg.vector_norm(b, dim=-1)
            report(
                Derivative.name,
                status,
                result.residual_norm,
                bound,
                result.steps,
                self.settings.on_failure,
            )
        return w, facts

    def _note(self, facts: Callable[[], Facts]) -> None:
        """Keep what makes the facts, for those who ask."""
        if self.record is not None:
            self.record.backward = partial(_info, facts, self.batch_shape)

    def _inverse(self, tensors: Sequence[Tensor], batch: int) -> Any:
        if not tensors:
            return None
        return _Tiled(self.settings.inverse(tensors), tensors[0].shape[0], batch)


def _info(facts: Callable[[], Facts], batch_shape: torch.Size) -> SolveInfo:
    return facts().info(batch_shape, Record(Derivative.name))


class _Solver:
    """The user's linear solver, or the forward solver's inverse refined to tolerance, or the automatic choice."""

    def __init__(self, settings: LinearSettings, operator: Jacobian, inverse: Any) -> None:
        self.settings = settings
        self.operator = operator
        self.named = settings.solver
        self.inverse = inverse if settings.solver is None else None
        self.refined = None if self.inverse is None else Richardson(preconditioner=self.inverse, max_steps=REFINEMENTS)
        self.unrefined: Tensor | None = None  # where that was not enough
        self._state: Any = None

    @property
    def state(self) -> Any:
        """The chosen solver factorised on the operator, when it is needed."""
        if self._state is None:
            automatic = Contraction() if self.settings.near_identity else Auto()
            self._state = (automatic if self.named is None else self.named).factorize(self.operator)
        return self._state

    def solve(self, b: Tensor, adjoint: bool) -> LinearResult:
        if self.operator.shape[-1] == 1 and self.named is None:
            return self._divided(b)
        if self.refined is None:
            return self._chosen(b, adjoint)
        rtol, atol = self.settings.rtol, self.settings.atol
        result = self.refined.factorize(self.operator).iterate(b, adjoint, rtol=rtol, atol=atol)
        if finished(result.converged):
            return result
        self.unrefined = ~result.converged
        if self.operator.shape[-1] > Auto.dense_limit:
            krylov = GMRES(preconditioner=self.inverse, restart=KRYLOV, max_steps=KRYLOV).factorize(self.operator)
            result = better_of(result, krylov.iterate(b, adjoint, x0=result.x.nan_to_num(), rtol=rtol, atol=atol))
        return result if finished(result.converged) else better_of(result, self._chosen(b, adjoint))

    def _divided(self, b: Tensor) -> LinearResult:
        """The solutions of systems with one unknown."""
        self._state = division = Division(self.operator.to_dense().squeeze(-1))
        x = division.solve(b)
        residual = torch.addcmul(b, division.d, x, value=-1).abs().squeeze(-1)
        converged = residual <= self.settings.atol + self.settings.rtol * b.abs().squeeze(-1)
        one = torch.ones_like(converged, dtype=torch.int64)
        return LinearResult(x, residual, one, converged, ~converged, torch.zeros_like(converged), 0)

    def _chosen(self, b: Tensor, adjoint: bool) -> LinearResult:
        state = self.state
        if not hasattr(state, "iterate"):  # a direct solver: its answer is refined, and its residual known
            state = Richardson(preconditioner=state, max_steps=REFINEMENTS).factorize(self.operator)
        result: LinearResult = state.iterate(
            b, adjoint, rtol=self.settings.rtol, atol=self.settings.atol, max_steps=self.settings.max_steps
        )
        return result

    def moved(self, b: Tensor, w: Tensor) -> Tensor | None:
        """Where the Jacobian is far from the one whose inverse the forward solver left, and badly conditioned; None: nowhere."""
        if self.unrefined is None:
            return None
        v = unpatterned(b)
        norm = torch.linalg.vector_norm(self.operator.rmatvec(v), dim=-1) / torch.linalg.vector_norm(v, dim=-1)
        amplification = torch.linalg.vector_norm(w, dim=-1) / torch.linalg.vector_norm(b, dim=-1)
        return self.unrefined & ~(norm * amplification < AMPLIFIED)

    def singular(self) -> Tensor | None:
        """Where the factors that were used say that the matrix is singular; None: nowhere."""
        if self._state is None:
            if self.inverse is None or not occurs(self.inverse.suspicious):
                return None
            self._state = LU().factorize(self.operator)  # the inverse was of a nearby matrix, and perhaps badly scaled
        return getattr(getattr(self._state, "direct", self._state), "singular", None)


class _Tiled:
    """An inverse of k systems that serves a multiple of k right-hand sides, all rows of the flat batch."""

    def __init__(self, inverse: Any, systems: int, batch: int) -> None:
        self.inverse, self.systems, self.batch = inverse, systems, batch

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        if self.systems == self.batch:
            solution: Tensor = self.inverse.solve(b, adjoint)
            return solution
        tiled: Tensor = self.inverse.solve(b.unflatten(0, (-1, self.systems)), adjoint)
        return tiled.flatten(0, 1)

    @property
    def suspicious(self) -> Tensor:
        found: Tensor = self.inverse.suspicious
        return found
