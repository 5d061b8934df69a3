"""A function that gives two answers for one z is found out by a second evaluation, before anything is searched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchimplicit as ti
from torchimplicit import Status

from ..every_solver import GENERAL

N = 24
D = torch.float64
X = torch.linspace(-1, 1, N, dtype=D)
FEW = 5


def matrix() -> Tensor:
    return torch.randn(N, N, dtype=D, generator=torch.Generator().manual_seed(0)) / (2 * N**0.5)


def quiet(solve: Callable[..., Any], *args: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    with pytest.warns(ti.ConvergenceWarning, match=r"(?s)stochastic.*dropout"):
        return solve(*args, **options).info


@pytest.mark.parametrize("solver", [None, *GENERAL])
def test_dropout_is_found_by_every_solver(solver: str | None) -> None:
    W, drop = matrix(), nn.Dropout(0.5)
    info = quiet(ti.root, lambda z: z - drop(torch.tanh(W @ z) + X), 0 * X, solver=solver)
    assert info.status == Status.STOCHASTIC
    assert info.evaluations <= FEW


def test_dropout_of_a_start_of_zeros_is_found_at_the_next_z() -> None:
    W, drop = matrix(), nn.Dropout(0.5)
    info = quiet(ti.fixed_point, lambda z: torch.tanh(W @ drop(z) + X), 0 * X)
    assert info.status == Status.STOCHASTIC
    assert info.evaluations <= FEW


@pytest.mark.parametrize("solver", ["trust_newton", "lbfgs", "bfgs", "newton_cg"])
def test_a_minimum(solver: str) -> None:
    drop = nn.Dropout(0.5)
    info = quiet(ti.minimize, lambda z: (drop(z) - X).square().sum(), 1 + 0 * X, solver=solver)
    assert info.status == Status.STOCHASTIC
    assert info.evaluations <= FEW


def test_a_fit() -> None:
    drop = nn.Dropout(0.5)
    info = quiet(ti.least_squares, lambda z: drop(z - X), 1 + 0 * X)
    assert info.status == Status.STOCHASTIC
    assert info.evaluations <= FEW


def test_only_the_systems_with_noise_end_and_the_others_are_solved() -> None:
    drop = nn.Dropout(0.5)
    x = X.expand(3, N)

    def f(z: Tensor) -> Tensor:
        noisy = drop(torch.ones_like(z))
        return 0.5 * z + torch.where(torch.arange(3).unsqueeze(-1) == 1, noisy, 1.0) * x

    torch.manual_seed(0)
    z, info = ti.fixed_point(f, torch.zeros_like(x), batch_ndim=1, solver="picard", on_failure="ignore")
    assert info.status.tolist() == [Status.CONVERGED, Status.STOCHASTIC, Status.CONVERGED]
    assert info.steps[1] <= 1
    assert torch.allclose(z[::2], 2 * x[::2], atol=1e-6)


def test_random_numbers_without_consequence_are_no_noise() -> None:
    W = matrix()
    z, info = ti.fixed_point(lambda z: torch.tanh(W @ z + X) + 0 * torch.rand(N), 0 * X)
    assert info.converged
    assert torch.allclose(z, torch.tanh(W @ z + X), atol=1e-7)


def test_a_function_that_draws_nothing_is_not_evaluated_twice() -> None:
    W, calls = matrix(), []
    with torch.no_grad():
        _, info = ti.fixed_point(lambda z: calls.append(0) or torch.tanh(W @ z + X), 0 * X, solver="picard")
    assert len(calls) == info.evaluations


def test_inside_a_transform_the_status_tells() -> None:
    W, drop = matrix(), nn.Dropout(0.5)

    def status(x: Tensor) -> tuple[Tensor, Tensor]:
        z, info = ti.fixed_point(
            lambda z: drop(torch.tanh(W @ z) + x), torch.zeros_like(x), on_failure="ignore", solver="picard"
        )
        return z.sum(), info.status

    torch.manual_seed(0)
    _, found = torch.func.grad(status, has_aux=True)(X)
    assert found == Status.STOCHASTIC


@pytest.mark.parametrize("batch", [0, 1])
def test_a_failure_is_called_noise_whatever_generator_it_comes_from(batch: int) -> None:
    """Of torch.Generator, NumPy and random nothing is known beforehand: what fails is asked again."""
    own = torch.Generator().manual_seed(0)

    def noisy(z: Tensor) -> Tensor:
        return z - torch.cos(z) / 2 - 0.1 * torch.rand(z.shape, generator=own, dtype=D)

    info = quiet(ti.root, noisy, torch.zeros(3, 4, dtype=D), batch_ndim=batch, max_steps=20)
    assert (info.status == Status.STOCHASTIC).all()


def test_a_failure_without_noise_is_not_called_noise() -> None:
    info = ti.root(lambda z: z**2 + 1, torch.ones(3, 1, dtype=D), batch_ndim=1, on_failure="ignore").info
    assert not ((info.status == Status.STOCHASTIC) | (info.status == Status.COUPLED)).any()
