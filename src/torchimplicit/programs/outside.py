"""Solvers of others for quadratic programs: what they are asked, and their answers as points near a solution."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from torchimplicit.layout import describe
from torchimplicit.programs.interior_point import Point
from torchimplicit.programs.quadratic import Data, Units
from torchimplicit.status import Status


class Answers(NamedTuple):
    """Of B programs: z (B, n), multipliers (B, m + k + n), of inequalities, equalities and bounds (:class:`Data`), and which have been
    solved, (B,)."""

    z: Tensor
    multipliers: Tensor
    solved: Tensor


class Outside(Protocol):
    """A solver of somebody else's."""

    def programs(self, data: Data) -> Answers:
        """Its answers. What it gives for a program that it has not solved is not looked at."""
        ...


ENDED = {
    "Solved": Status.CONVERGED,
    "AlmostSolved": Status.CONVERGED,
    "PrimalInfeasible": Status.PRIMAL_INFEASIBLE,
    "AlmostPrimalInfeasible": Status.PRIMAL_INFEASIBLE,
    "DualInfeasible": Status.DUAL_INFEASIBLE,
    "AlmostDualInfeasible": Status.DUAL_INFEASIBLE,
    "MaxIterations": Status.MAX_STEPS,
}  # what Clarabel, and those that are made after it, call the ends of a search


class ConeAnswers(NamedTuple):
    """Of B cone programs: z (B, n) and multipliers y (B, m), how each search ended, (B,), and after how many steps.

    With the status PRIMAL_INFEASIBLE, y is the proof, with DUAL_INFEASIBLE z is.
    """

    z: Tensor
    y: Tensor
    status: Tensor
    steps: Tensor


class ConeSolver(Protocol):
    """A solver of cone programs (:class:`torchimplicit.programs.conic.ConePrograms`) for batches (B,)."""

    def cone_programs(self, programs: Any, max_steps: int | None) -> ConeAnswers:
        """Its answers, in at most so many steps each; None: as many as it likes."""
        ...


def check_outside(solver: object) -> None:
    """Raise TypeError unless ``solver`` is None or a solver for quadratic programs."""
    if solver is not None and not callable(getattr(solver, "programs", None)):
        raise TypeError(
            f'solver must be one for quadratic programs, such as ti.interop.qpsolvers("piqp"), or None; got {describe(solver)}.'
        )


def asked(outside: Outside, data: Data, units: Units) -> tuple[Point, Tensor, Tensor]:
    """The points that it finds, in the ``units`` of the scaled programs, how each search ended, and how often each was asked, once."""
    found = outside.programs(data)
    solved = found.solved.reshape(-1, 1, 1)
    x = torch.where(solved, found.z.unsqueeze(-1) / units.z, 0)
    y = torch.where(solved, found.multipliers.unsqueeze(-1) / units.y, 0)
    bounds = data.sizes[-1]
    first, of_bounds = y.split([y.shape[-2] - bounds, bounds], -2)
    y = torch.cat([first, of_bounds.clamp(min=0), (-of_bounds).clamp(min=0)], -2)
    one = torch.ones_like(x[:, :1])
    status = torch.where(found.solved, int(Status.CONVERGED), int(Status.STAGNATED))
    return Point(x, y, torch.zeros_like(y), one, one), status, torch.ones_like(status)
