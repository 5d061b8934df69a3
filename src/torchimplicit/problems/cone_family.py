"""A family of cone programs, as a problem: its conditions, its search, and what is told of its solution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from torchimplicit.adjoints import Adjoint, Implicit
from torchimplicit.adjoints.unrolled import Unrolled
from torchimplicit.capture.autocast import Autocast
from torchimplicit.condition import Kind
from torchimplicit.layout import Layout, describe, same_as_z
from torchimplicit.linear.solver import Left
from torchimplicit.loop.search import Inside
from torchimplicit.loop.settings import LoopSettings
from torchimplicit.loop.solve import SearchResult
from torchimplicit.parameters import check_steps
from torchimplicit.problem import Problem
from torchimplicit.problems.all_systems import of_all_systems
from torchimplicit.problems.pose import check_adjoint
from torchimplicit.problems.program_search import ProgramSearch
from torchimplicit.programs.clarabel import Clarabel
from torchimplicit.programs.cone_solving import ConeInverse, solve
from torchimplicit.programs.conic import ConePrograms
from torchimplicit.programs.faces import WEAK
from torchimplicit.programs.info import ConeCertificate, ProgramInfo, shown
from torchimplicit.programs.outside import ConeSolver
from torchimplicit.programs.sparse_conic import SparseConeInverse
from torchimplicit.solution import Record, Solution
from torchimplicit.solvers.equations import Equations
from torchimplicit.status import OnFailure, Status, check_policy, unanswered
from torchimplicit.tolerance import Tolerance


@dataclass(frozen=True)
class Family:
    """Cone programs made of tensors.

    of : the tensors -> the programs; each tensor has its batch dimensions in front, which broadcast.
    core : how many dimensions of each tensor follow those of the batch.
    """

    of: Callable[[tuple[Tensor, ...]], ConePrograms]
    tensors: tuple[Tensor, ...]
    core: tuple[int, ...]


class ConeOptimum(Kind):
    """The optimality conditions of a cone program, in w = (z, y): each cone's on the face on which its slack and its multiplier lie."""

    name = "solution of the cone program"


@dataclass(frozen=True)
class Conditions:
    """The conditions as a function of w = (z, y) and the tensors of a family."""

    family: Family
    __name__ = "cone_program"  # as errors call it

    def __call__(self, w: tuple[Tensor, Tensor], *tensors: Tensor) -> tuple[Tensor, Tensor]:
        return self.family.of(tensors).conditions(*w)


@dataclass(frozen=True)
class ConeSearch(ProgramSearch):
    """A solver of somebody else's, and Newton's method on the conditions (:mod:`torchimplicit.programs.cone_solving`).

    by_entries : whether their Jacobians are formed so.
    """

    family: Family
    solver: ConeSolver
    max_steps: int | None
    by_entries: bool

    def __call__(self, equations: Equations, z0: Tensor, settings: LoopSettings, inside: Inside | None) -> SearchResult:
        tensors, vmaps = (self.family.tensors, ()) if inside is None else (inside.tensors, inside.vmaps)
        tensors = of_all_systems(tensors, self.family.core, vmaps, self.layout.batch_shape)
        programs = self.family.of(tuple(tensors)).expanded(z0.shape[0])
        return self.told(solve(programs, self.solver, self.max_steps), equations, z0)

    def from_tensors(self, tensors: Sequence[Tensor]) -> Left:
        return SparseConeInverse(tensors) if self.by_entries else ConeInverse(tensors)


def pose_and_solve(
    family: Family,
    batch_shape: torch.Size,
    *,
    solver: ConeSolver | None,
    adjoint: Adjoint | None,
    rtol: float | None,
    atol: float | None,
    max_steps: int | None,
    on_failure: OnFailure,
) -> Solution:
    """Check the options, and hand the problem to its adjoint. ``batch_shape`` : of the programs."""
    check_policy(on_failure)
    check_steps(max_steps)
    check_adjoint(adjoint)
    if isinstance(adjoint, Unrolled):
        raise TypeError("the steps of the solver have no derivative. Use Implicit() (the default).")
    if solver is None:
        solver = Clarabel()
    if not callable(getattr(solver, "cone_programs", None)):
        raise TypeError(f"solver must be one for cone programs, such as ti.interop.Clarabel(); got {describe(solver)}.")
    programs = family.of(family.tensors)
    like = [v.detach().new_zeros(*batch_shape, v.shape[-1]) for v in (programs.q, programs.b)]
    layout = Layout.of(tuple(like), len(batch_shape))
    tolerance = Tolerance.of(rtol, atol, layout.real_dtype)
    problem = Problem(
        kind=ConeOptimum(),
        fn=Conditions(family),
        args=family.tensors,
        layout=layout,
        flatten=lambda layout, _: same_as_z(layout, "the conditions"),
        search=ConeSearch(layout, tolerance, family, solver, max_steps, programs.by_entries),
        tolerance=tolerance,
        max_steps=0,
        on_failure=on_failure,
        has_aux=False,
        record=Record(ConeOptimum.name),
        autocast=Autocast.now(layout.device.type),
    )
    w0 = torch.zeros(layout.batch, layout.size, dtype=layout.real_dtype, device=layout.device)
    return _told((adjoint or Implicit()).run(problem, w0), programs)


def _told(found: Solution, programs: ConePrograms) -> Solution:
    """z and the multipliers as the user sees them: NaN where there is no solution, and what proves it."""
    (z, y), info = found
    none = unanswered(info.status).unsqueeze(-1)
    primal = (info.status == Status.PRIMAL_INFEASIBLE).unsqueeze(-1)
    unbounded = (info.status == Status.DUAL_INFEASIBLE).unsqueeze(-1)
    ray, proof = z.detach(), y.detach()
    value = -(programs.b.detach() * proof).sum(-1, keepdim=True)
    falls = -(programs.q.detach() * ray).sum(-1, keepdim=True)
    certificate = ConeCertificate(
        torch.where(unbounded, ray / falls, torch.nan), torch.where(primal, proof / value, torch.nan)
    )
    size = proof / programs.units(ray, proof)[1]
    held = programs.in_cones(lambda kind, s, y: (y.abs() > WEAK).any(-1, keepdim=True).expand(y.shape), size, size)
    active = torch.cat([proof[..., :0].bool(), *(part.flatten(-2) for part in held)], -1)
    facts = {field.name: getattr(info, field.name) for field in fields(info)}
    z, y = shown(info.status, z, y)
    return Solution(z, ProgramInfo(**facts, dual=y, active=active & ~none, certificate=certificate))
