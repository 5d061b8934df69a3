"""A right answer is recognised: it is not reported as a failure."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti

from .outcomes import D, S, error, outcome, right, tolerance
from .units import LONG, SQUARES, A, T, Y, fast_but


@pytest.mark.sampled(3)
@pytest.mark.parametrize("factor", [1e-8, 1e-3, 1.0, 1e3, 1e8])
@pytest.mark.parametrize(
    "solver", ["auto", "newton", "chord", "newton_krylov", "dogleg", "levenberg_marquardt", "gauss_newton"]
)
def test_a_solution_is_recognised_in_single_precision(solver: str, factor: float) -> None:
    for n in (3, 20):
        draw = torch.Generator().manual_seed(n)
        M = torch.eye(n) + 0.3 * torch.randn(n, n, generator=draw) / n**0.5
        exact = torch.randn(n, generator=draw)
        b = M @ exact + 0.1 * exact**3
        g = lambda z, M=M, b=b: factor * (M @ z + 0.1 * z**3 - b)  # noqa: E731
        result = outcome(ti.root, g, exact, solver=solver)
        assert result.silent, result.words
        assert result.info.steps <= 1
        assert right(result.z, exact)


@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_a_large_objective_within_bounds_that_hold_nothing(scale: float, dtype: torch.dtype) -> None:
    target = torch.tensor([0.3, -1.0, 2.0, 0.7], dtype=dtype)
    weights = torch.tensor([1.0, 3.0, 0.5, 10.0], dtype=dtype)

    def phi(z: Tensor) -> Tensor:
        return scale * (weights * ((z - target) ** 2 + (z - target) ** 4)).sum()

    for start in (torch.zeros(4, dtype=dtype), target.clone(), torch.full((4,), 4.0, dtype=dtype)):
        result = outcome(ti.minimize, phi, start, bounds=(-5.0, 5.0))
        assert result.silent, result.words
        assert right(result.z, target)
        # With a bound that holds: the first unknown may not come below 0.5.
        lower = torch.tensor([0.5, -5.0, -5.0, -5.0], dtype=dtype)
        held = outcome(ti.minimize, phi, start.maximum(lower), bounds=(lower, 5.0))
        assert held.silent, held.words
        assert right(held.z, target.maximum(lower))


def test_a_right_answer_is_not_destroyed() -> None:
    exact = torch.tensor([1.0, -2.0, 0.5])
    b = A.float() @ exact + 0.1 * exact**3
    z, info = ti.root(lambda z: 1e3 * (A.float() @ z + 0.1 * z**3 - b), exact, on_failure="nan")
    assert info.converged
    assert right(z, exact)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("solver", fast_but(LONG, SQUARES))
def test_residuals_that_vanish_twice_are_a_solution(solver: str, dtype: torch.dtype) -> None:
    """(w − a)² has a Jacobian that vanishes with it: methods halve their distance, and what they end with is right or a failure."""
    a = torch.tensor([5.0, 0.0, -2.0], dtype=dtype)
    result = outcome(ti.least_squares, lambda w: (w - a) ** 2, torch.ones(3, dtype=dtype), solver=solver)
    # A residual of eps is that of any w within √eps of a: nobody can tell them apart.
    near = error(result.z, a) <= 10 * torch.finfo(dtype).eps ** 0.5 * 5
    assert near or not result.found, (result.z, result.info.status)
    if solver == "auto":
        assert result.silent, result.words
        assert near
        assert result.info.steps <= 60


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("solver", ["levenberg_marquardt", "dogleg"])
def test_a_start_near_nothing_is_a_start_at_nothing(solver: str, dtype: torch.dtype) -> None:
    """The radius of the trust region is measured by the start only where the start says anything of the unit of z."""
    b = torch.tensor([3.0, -1.0, 2.0], dtype=dtype)
    M, t, y = A.to(dtype), T.to(dtype), Y.to(dtype)
    problems: dict[str, tuple[Any, Any, int]] = {
        "linear fit": (ti.least_squares, lambda z: M @ z - b, 3),
        "linear root": (ti.root, lambda z: M @ z - b, 3),
        "cubic root": (ti.root, lambda z: M @ z + 0.1 * z**3 - b, 3),
        "curve": (ti.least_squares, lambda z: z[0] + z[1] * t + (z[1] * t).sin() - y, 2),
        "far away": (ti.root, lambda z: M @ z / 1e6 - b, 3),
    }
    for name, (solve, f, n) in problems.items():
        at_zero = outcome(solve, f, torch.zeros(n, dtype=dtype), solver=solver)
        assert at_zero.silent, (name, at_zero.words)
        for start in (1e-9, 1e-15, 1e-30):
            result = outcome(solve, f, torch.full((n,), start, dtype=dtype), solver=solver)
            assert result.silent, (name, start, result.words)
            assert result.info.steps <= at_zero.info.steps + 3, (name, start, result.info.steps, at_zero.info.steps)
            assert error(result.z, at_zero.z) <= 10 * tolerance(at_zero.z), (name, start)
