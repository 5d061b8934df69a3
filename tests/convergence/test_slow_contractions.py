"""A fixed point whose map hardly moves z: a short step is no short distance, and what is left is step · 1/(1 − contraction)."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor

import torchimplicit as ti

from ..every_solver import GENERAL
from .outcomes import D, S, error, outcome, polished, right

slow = pytest.mark.slow
SOLVERS = ["auto", "picard", "anderson", "broyden", "newton", "newton_krylov"]
REST = [pytest.param(name, marks=slow) for name in GENERAL if name not in SOLVERS]
GRADIENT = 0.01  # of a gradient that nothing was said of: relative to its largest entry


def gradient_is_right(found: Tensor | None, truth: Tensor, bound: float = GRADIENT) -> bool:
    return found is not None and bool(error(found, truth) <= bound * truth.abs().max())


SLOPES, TARGET = torch.tensor([1.0, 2.0, 3.0], dtype=D), torch.tensor([2.0, -1.0, 0.5], dtype=D)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("rate", [1e-4, pytest.param(1e-2, marks=slow), pytest.param(1e-6, marks=slow)])
@pytest.mark.parametrize("solver", [*SOLVERS, *REST])
def test_a_map_that_hardly_moves_z(solver: str, rate: float, dtype: torch.dtype) -> None:
    slopes = SLOPES.to(dtype)

    def f(z: Tensor, a: Tensor) -> Tensor:
        return z - rate * (z * slopes + z**3 - a)

    root = polished(lambda z: z * SLOPES + z**3 - TARGET, torch.ones(3, dtype=D))
    result = outcome(ti.fixed_point, f, torch.ones(3, dtype=dtype), TARGET.to(dtype), solver=solver)
    # In float32, f(z) − z is rounded to eps: of z no more than eps / rate is known, which is 100 tolerances at 1e-6.
    assert result.found <= right(result.z, root), (result.z, root, result.info.error)
    if result.silent:
        rounding = torch.finfo(dtype).eps / rate  # of 1 − f'
        assert gradient_is_right(result.gradient, 1 / (SLOPES + 3 * root**2), GRADIENT + rounding), result.gradient
    elif dtype == D and solver in ("auto", "newton"):
        pytest.fail(f"not found: {result.words}")


PENALTY = 2.0


def soft(v: Tensor, by: float) -> Tensor:
    return v.sign() * (v.abs() - by).clamp(min=0)


@cache
def lasso() -> tuple[Tensor, Tensor, float, Tensor, Tensor]:
    """A, y and the step length; the minimiser of ½‖A z − y‖² + λ‖z‖₁, and the derivative of its sum in y.

    On its support the minimiser is the solution of a linear system, with the signs that it has.
    """
    draw = torch.Generator().manual_seed(3)
    A = torch.randn(20, 12, dtype=D, generator=draw)
    A[:, 1:] += 3 * A[:, :1]  # columns that are much alike: slow
    y = A[:, [0, 3, 7]] @ torch.tensor([2.0, -1.5, 1.0], dtype=D) + 0.1 * torch.randn(20, dtype=D, generator=draw)
    step = 1 / float(torch.linalg.matrix_norm(A, ord=2)) ** 2
    z = torch.zeros(12, dtype=D)
    for _ in range(10_000):
        z = soft(z - step * A.T @ (A @ z - y), step * PENALTY)
    on = z != 0
    part = A[:, on]
    normal = part.T @ part
    truth = torch.zeros(12, dtype=D)
    truth[on] = torch.linalg.solve(normal, part.T @ y - PENALTY * z[on].sign())
    return A, y, step, truth, part @ torch.linalg.solve(normal, torch.ones(len(normal), dtype=D))


def test_the_minimiser_of_the_lasso_meets_the_conditions_of_optimality() -> None:
    A, y, _, truth, _ = lasso()
    slopes, on = A.T @ (y - A @ truth), truth != 0
    assert 2 <= int(on.sum()) < 12
    torch.testing.assert_close(slopes[on], PENALTY * truth[on].sign(), rtol=1e-9, atol=0)
    assert (slopes[~on].abs() < PENALTY * (1 - 1e-6)).all()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_lasso_by_thresholded_gradient_steps(solver: str, dtype: torch.dtype) -> None:
    """ISTA: soft(z − t Aᵀ(A z − y), t λ)."""
    A, y, step, truth, gradient = lasso()
    matrix = A.to(dtype)

    def f(z: Tensor, y: Tensor) -> Tensor:
        return soft(z - step * matrix.mT @ (matrix @ z - y), step * PENALTY)

    result = outcome(ti.fixed_point, f, torch.zeros(12, dtype=dtype), y.to(dtype), solver=solver)
    assert result.found <= right(result.z, truth), (error(result.z, truth), result.info.error)
    if result.silent:
        assert gradient_is_right(result.gradient, gradient), (result.gradient, gradient)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("rate", [1e-2, pytest.param(1e-3, marks=slow)])
def test_the_inner_problems_of_meta_learning(rate: float, solver: str, dtype: torch.dtype) -> None:
    """Adapted weights are a fixed point of short gradient steps on loss + λ/2 ‖w − θ‖²: four tasks, one batch, closed forms."""
    draw = torch.Generator().manual_seed(1)
    tasks, samples, n, strength = 4, 10, 5, 0.3
    inputs = torch.randn(tasks, samples, n, dtype=D, generator=draw)
    outputs = torch.randn(tasks, samples, dtype=D, generator=draw)
    inputs[2] *= 0.1  # one task of which the data say little: only λ holds it
    theta = torch.randn(n, dtype=D, generator=draw)
    matrix = inputs.mT @ inputs / samples + strength * torch.eye(n, dtype=D)
    truth = torch.linalg.solve(matrix, (inputs.mT @ outputs[..., None])[..., 0] / samples + strength * theta)
    hypergradient = strength * torch.linalg.solve(matrix, torch.ones(tasks, n, dtype=D)).sum(0)
    X, Y = inputs.to(dtype), outputs.to(dtype)

    def f(w: Tensor, theta: Tensor) -> Tensor:
        misfit = (X @ w[..., None])[..., 0] - Y
        return w - rate * ((X.mT @ misfit[..., None])[..., 0] / samples + strength * (w - theta))

    start = theta.to(dtype).expand(tasks, n).clone()
    result = outcome(ti.fixed_point, f, start, theta.to(dtype), solver=solver, batch_ndim=1)
    assert (result.found <= right(result.z, truth, rows=True)).all(), (error(result.z, truth, True), result.info.error)
    if result.silent.all():
        assert gradient_is_right(result.gradient, hypergradient), (result.gradient, hypergradient)
    if solver == "newton" and dtype == D:
        assert result.silent.all(), result.words


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("discount", [0.9, 0.999])
def test_the_value_of_a_chain_of_rewards(discount: float, solver: str, dtype: torch.dtype) -> None:
    """v = r + γ P v with a stochastic matrix P: v = (I − γ P)⁻¹ r."""
    draw = torch.Generator().manual_seed(2)
    P = torch.rand(30, 30, dtype=D, generator=draw) ** 8
    P /= P.sum(-1, keepdim=True)
    reward = torch.rand(30, dtype=D, generator=draw)
    system = torch.eye(30, dtype=D) - discount * P
    truth = torch.linalg.solve(system, reward)
    gradient = torch.linalg.solve(system.mT, torch.ones(30, dtype=D))
    result = outcome(
        ti.fixed_point,
        lambda v, r: r + discount * (P.to(dtype) @ v),
        torch.zeros(30, dtype=dtype),
        reward.to(dtype),
        solver=solver,
    )
    assert result.found <= right(result.z, truth), (error(result.z, truth), result.info.error)
    if result.silent:
        assert gradient_is_right(result.gradient, gradient)
    if solver in ("newton", "anderson", "auto") and (dtype == D or discount < 0.99):
        assert result.silent, result.words


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("solver", ["auto", "picard", "anderson"])
def test_rates_from_fast_to_slow_in_one_batch(solver: str, dtype: torch.dtype) -> None:
    """z = q z + (1 − q): each row has a rate of its own, up to 1 − 1e-5, and the fixed point 1."""
    rates = torch.tensor([0.0, 0.5, 0.9, 0.99, 0.999, 1 - 1e-4, 1 - 1e-5, -0.9, -0.999], dtype=dtype)
    if dtype == S:  # what is slower than that takes steps that are smaller than the tolerance: see the next test
        rates = rates[(1 - rates).abs() > 5e-4]
    spread = torch.stack([rates, 0.3 * rates, 0.1 * rates], -1)  # several rates in each system, the largest decides
    result = outcome(
        ti.fixed_point,
        lambda z, x: spread * z + (1 - spread) * x,
        torch.zeros_like(spread),
        torch.ones_like(spread),
        solver=solver,
        batch_ndim=1,
    )
    assert (result.found <= right(result.z, torch.ones_like(spread), rows=True)).all(), (result.z, result.info.error)


@pytest.mark.parametrize("rate", [1 - 1e-4, 1 - 1e-5])
@pytest.mark.parametrize("solver", ["auto", "picard", "anderson"])
def test_a_slow_part_whose_steps_are_smaller_than_the_tolerance_is_seen_by_the_derivative(
    solver: str, rate: float
) -> None:
    """Beside fast parts no residual shows it: the contraction that is seen is theirs. The Jacobian does."""
    spread = torch.tensor([rate, 0.3 * rate, 0.1 * rate])
    result = outcome(
        ti.fixed_point, lambda z, x: spread * z + (1 - spread) * x, torch.zeros(3), torch.ones(3), solver=solver
    )
    assert not result.silent or right(result.z, torch.ones(3))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("solver", ["auto", "picard", "anderson"])
def test_a_contraction_that_begins_slowly_and_one_that_ends_slowly(solver: str, dtype: torch.dtype) -> None:
    """What was seen of the contraction on the way is no promise for what is left of it."""
    starts = torch.tensor([1e3, -1e3, 5.0], dtype=dtype)
    # A fast part that hides a slow one: the first steps show a contraction of 0.1, the last of 0.998.
    rates = torch.tensor([0.1, 0.998], dtype=dtype)
    sizes = torch.tensor([1.0, 1e-3], dtype=dtype)
    start = torch.stack([starts, torch.zeros(3, dtype=dtype)], -1)
    result = outcome(ti.fixed_point, lambda z: rates * z + (1 - rates) * sizes, start, solver=solver, batch_ndim=1)
    assert (result.found <= right(result.z, sizes.expand(3, 2), rows=True)).all(), (result.z, result.info.error)
    # cos z from far away, z = log(1 + z) + 1e-3 from far away: nearly a contraction of 1 at its fixed point.
    result = outcome(ti.fixed_point, torch.cos, starts, solver=solver, batch_ndim=1)
    assert (result.found <= right(result.z, torch.full((3,), 0.7390851332151607, dtype=D), rows=True)).all(), result.z
    found = 1.0
    for _ in range(100):
        found -= (found - math.log1p(found) - 1e-3) / (1 - 1 / (1 + found))
    result = outcome(ti.fixed_point, lambda z: z.log1p() + 1e-3, starts.abs(), solver=solver, batch_ndim=1)
    assert (result.found <= right(result.z, torch.full((3,), found, dtype=D), rows=True)).all(), (result.z, found)
