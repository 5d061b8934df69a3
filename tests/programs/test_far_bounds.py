"""Bounds so far away that the terms of Qz cancel there: what is found is the solution of exact arithmetic, or none is claimed."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from tests.programs.random_programs import D
from torchimplicit import Status


def tensor(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=D)


def test_a_flat_valley_is_followed_to_bounds_of_any_distance() -> None:
    """½(z₁ + z₂)² − z₁ − 2z₂ within ±B is least at (1 − B, B), where the upper bound presses with a force of 1."""
    far = 10.0 ** torch.arange(2, 19, dtype=D).unsqueeze(-1)
    box = far.expand(-1, 2)
    z, info = ti.quadratic_program(
        torch.ones(2, 2, dtype=D), tensor(-1, -2), lower=-box, upper=box, on_failure="ignore"
    )
    truth = torch.cat([1 - far, far], -1)
    found = info.converged
    assert found[:11].all()  # to 1e12
    torch.testing.assert_close(z[found], truth[found], rtol=1e-12, atol=0)
    torch.testing.assert_close(info.dual.bounds[found], tensor(0, 1).expand(int(found.sum()), 2))
    assert (info.status[-3:] == Status.DUAL_INFEASIBLE).all()  # such bounds are none


@pytest.mark.parametrize("curvature", [1e-6, 1e-9, 1e-11, 1e-13])
def test_a_curvature_lost_to_rounding_is_never_a_wrong_solution(curvature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    R = torch.linalg.qr(torch.randn(20, 3, 3, dtype=D, generator=generator))[0]
    p = torch.randn(20, 3, dtype=D, generator=generator)
    spectrum = tensor(1, 0.5, curvature)
    z, info = ti.quadratic_program(R * spectrum @ R.mT, (R @ p.unsqueeze(-1)).squeeze(-1), on_failure="ignore")
    truth = -(R @ (p / spectrum).unsqueeze(-1)).squeeze(-1)
    assert info.converged.all() or curvature < 1e-8
    torch.testing.assert_close(z[info.converged], truth[info.converged], rtol=1e-6, atol=1e-6)


def within(Q: list[list[int]], p: list[int], lower: list[int], upper: list[int]) -> list[list[Fraction]]:
    """All solutions that are the only ones of some set of held bounds, in rational numbers."""
    n, found = len(p), []
    for side in itertools.product((-1, 0, 1), repeat=n):
        z = [Fraction((lower[i], 0, upper[i])[s + 1]) for i, s in enumerate(side)]
        free = [i for i in range(n) if side[i] == 0]
        right = [-p[i] - sum(Q[i][j] * z[j] for j in range(n)) for i in free]
        solution = solved([[Fraction(Q[i][j]) for j in free] for i in free], right)
        if solution is None:
            continue
        for i, value in zip(free, solution, strict=True):
            z[i] = value
        slope = [p[i] + sum(Q[i][j] * z[j] for j in range(n)) for i in range(n)]
        if all(lower[i] <= z[i] <= upper[i] and slope[i] * side[i] <= 0 for i in range(n)):
            found.append(z)
    return found


def solved(A: list[list[Fraction]], b: list[Fraction]) -> list[Fraction] | None:
    rows = [[*row, right] for row, right in zip(A, b, strict=True)]
    for k in range(len(rows)):
        pivot = next((i for i in range(k, len(rows)) if rows[i][k]), None)
        if pivot is None:
            return None
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [a / rows[k][k] for a in rows[k]]
        rows = [r if i == k else [a - r[k] * c for a, c in zip(r, rows[k], strict=True)] for i, r in enumerate(rows)]
    return [row[-1] for row in rows]


@pytest.mark.parametrize("as_rows", [False, True])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_bounds_of_many_sizes_are_those_of_rational_arithmetic_or_reported(n: int, as_rows: bool) -> None:
    numbers = random.Random(n)
    data, truths = [], []
    while len(truths) < 20:
        L = [numbers.choices(range(-3, 4), k=n - 1) for _ in range(n)]  # of rank n − 1
        Q = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in L] for x in L]
        p = numbers.choices(range(-5, 6), k=n)
        lower, upper = ([sign * numbers.randint(1, 9) * 10 ** numbers.randint(0, 13) for _ in p] for sign in (-1, 1))
        solutions = within(Q, p, lower, upper)
        if len(solutions) == 1:
            data.append((Q, p, lower, upper))
            truths.append([float(value) for value in solutions[0]])
    Q, p, lower, upper = (tensor(*part) for part in zip(*data, strict=True))
    eye = torch.eye(n, dtype=D)
    bounds = (
        {"G": torch.cat([eye, -eye]), "h": torch.cat([upper, -lower], -1)}
        if as_rows
        else {"lower": lower, "upper": upper}
    )
    z, info = ti.quadratic_program(Q, p, **bounds, on_failure="ignore")
    off = (z - tensor(*truths)).abs().amax(-1) / tensor(*truths).abs().amax(-1)
    assert (off[info.converged] < 1e-8).all()
    assert info.converged.sum() >= 17
