"""The barrier problem beside a quadratic program: its derivative is useful where that of the program is 0 or does not exist."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.linear.vectors import times
from torchimplicit.problems.root import root
from torchimplicit.solution import Solution
from torchimplicit.status import OnFailure


@dataclass(frozen=True)
class Barrier:
    """The conditions of the minimum of ½ zᵀQz + pᵀz − μ Σ log(slack) over Az = b: as of the program, but slack · multiplier = μ.

    A function of (z, λ, ν, u, l), multipliers of inequalities, equalities, upper and lower bounds, and of those of the data that were
    given, by their ``names``.
    """

    names: tuple[str, ...]
    mu: float

    def __call__(self, w: tuple[Tensor, ...], *data: Tensor) -> tuple[Tensor, ...]:
        z, inequality, equality, up, down = w
        given = dict(zip(self.names, data, strict=True))
        Q = given["Q"]
        gradient = (times(Q, z) + times(Q.mT, z)) / 2 + given["p"]
        of_inequality, of_equality, of_up, of_down = inequality, equality, up, down
        if "G" in given:
            gradient = gradient + times(given["G"].mT, inequality)
            of_inequality = self._paired(inequality, given["h"], times(given["G"], z))
        if "A" in given:
            gradient = gradient + times(given["A"].mT, equality)
            of_equality = times(given["A"], z) - given["b"]
        if "lower" in given:
            gradient = gradient + up - down
            of_up, of_down = self._paired(up, given["upper"], z), self._paired(down, -given["lower"], -z)
        return gradient, of_inequality, of_equality, of_up, of_down

    def _paired(self, y: Tensor, limit: Tensor, value: Tensor) -> Tensor:
        """0 where y and the slack s, limit − value, are positive with y s = μ, and smooth everywhere; where there is no limit, y.

        Source: Kanzow, Some noninterior continuation methods for linear complementarity problems, SIAM J. Matrix Anal. Appl. 17
        (1996)."""
        there = limit < torch.inf
        s = torch.where(there, limit, 0) - value
        return torch.where(there, y + s - (y.square() + s.square() + 2 * self.mu).sqrt(), y)


def smoothed(
    names: tuple[str, ...], data: tuple[Tensor, ...], exact: Solution, mu: float, on_failure: OnFailure
) -> Solution:
    """``exact``, the solution of the program with its multipliers, (z, λ, ν, μ), with the derivative of the barrier problem."""
    z, inequality, equality, bounds = (part.detach().nan_to_num() for part in exact.value)
    start = (z, inequality, equality, bounds.clamp(min=0), (-bounds).clamp(min=0))
    near, _ = root(Barrier(names, mu), start, data, batch_ndim=z.ndim - 1, on_failure=on_failure)
    z, inequality, equality, up, down = near
    moving = (z, inequality, equality, up - down)
    value = tuple(there.detach() + (part - part.detach()) for there, part in zip(exact.value, moving, strict=True))
    return Solution(value, exact.info)
