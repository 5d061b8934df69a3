"""Where a whole line of z solves the equations, z is not run off along it until the tolerance fits what is found."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti

from .outcomes import D, Outcome, S, error, outcome

slow = pytest.mark.slow
SOLVERS = ["auto", "newton", "chord", "newton_krylov", "picard", "anderson", "broyden", "dogleg"]
STRENGTHS = [0.05, 0.3, 2.0]  # of the entropy: at the least of them the map hardly contracts


class Transport:
    """Entropic optimal transport: P = exp((u + v − C)/ε) with the marginals a and b. With u, u + c is a solution too."""

    def __init__(self, strength: float, dtype: torch.dtype = D, n: int = 5, m: int = 7) -> None:
        draw = torch.Generator().manual_seed(n)
        cost = torch.rand(n, m, dtype=D, generator=draw)
        a = torch.rand(n, dtype=D, generator=draw) + 0.2
        b = torch.rand(m, dtype=D, generator=draw) + 0.2
        self.cost, self.log_a, self.log_b = cost.to(dtype), (a / a.sum()).log().to(dtype), (b / b.sum()).log().to(dtype)
        self.strength = strength

    def other(self, u: Tensor, cost: Tensor) -> Tensor:
        return self.strength * (self.log_b - ((u[..., :, None] - cost) / self.strength).logsumexp(-2))

    def step(self, u: Tensor, cost: Tensor) -> Tensor:
        """Sinkhorn's iteration in the log domain, u -> u."""
        v = self.other(u, cost)
        return self.strength * (self.log_a - ((v[..., None, :] - cost) / self.strength).logsumexp(-1))

    def plan(self, u: Tensor, cost: Tensor) -> Tensor:
        return ((u[..., :, None] + self.other(u, cost)[..., None, :] - cost) / self.strength).exp()


@cache
def exact(strength: float) -> tuple[Tensor, Tensor]:
    """The transport cost in float64 by many steps, and its derivative in the costs by differences of the same."""
    double = Transport(strength)
    cost = double.cost
    moves = 1e-6 * torch.eye(cost.numel(), dtype=D).reshape(-1, *cost.shape)
    costs = torch.cat([cost + moves, cost - moves, cost[None]])
    u = torch.zeros(len(costs), 5, dtype=D)
    for _ in range(4000):
        before, u = u, double.step(u, costs)
        if (u - before).abs().max() <= 1e-15:
            break
    plus, minus, (value,) = (double.plan(u, costs) * costs).sum((-2, -1)).tensor_split([len(moves), 2 * len(moves)])
    return value, ((plus - minus) / 2e-6).reshape(cost.shape)


def solve(problem: Transport, start: Tensor, solver: Any) -> tuple[Outcome, Tensor]:
    """The outcome with the gradient, in the costs, of the transport cost, which the gauge does not enter."""
    import warnings

    cost = problem.cost.clone().requires_grad_()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        u, info = ti.fixed_point(problem.step, start, (cost,), solver=solver)
        value = (problem.plan(u, cost) * cost).sum()
        (gradient,) = torch.autograd.grad(value, cost)
    words = [str(w.message) for w in caught if issubclass(w.category, ti.ConvergenceWarning)]
    return Outcome(u.detach(), info, gradient, words), value.detach()


@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("strength", [0.3, *(pytest.param(s, marks=slow) for s in (0.05, 2.0))])
@pytest.mark.parametrize("solver", SOLVERS)
def test_what_the_gauge_does_not_change_is_right_or_it_is_said(
    solver: str, strength: float, dtype: torch.dtype
) -> None:
    problem = Transport(strength, dtype)
    value, gradient = exact(strength)
    for shift in (0.0, 10.0):
        start = torch.linspace(-1, 1, 5, dtype=dtype) + shift
        result, found = solve(problem, start, solver)
        if result.silent:
            # z is determined but for a constant: an error of the tolerance at this size changes P by that over ε.
            allowed = 1e3 * torch.finfo(dtype).eps ** 0.5 * (1 + shift) / strength
            assert abs(float(found - value)) <= allowed * float(value), (found, value, result.z)
            assert error(result.gradient, gradient) <= allowed * gradient.abs().max(), (result.gradient, gradient)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_what_has_converged_has_not_run_off_along_the_gauge(solver: str, strength: float, dtype: torch.dtype) -> None:
    problem = Transport(strength, dtype)
    start = torch.linspace(-1, 1, 5, dtype=dtype)
    u, info = ti.fixed_point(problem.step, start, (problem.cost,), solver=solver, on_failure="ignore")
    if info.converged:
        assert u.abs().max() <= 100
        marginals = problem.plan(u, problem.cost).double().sum(-1)
        assert error(marginals, problem.log_a.double().exp()) <= 1e3 * torch.finfo(dtype).eps ** 0.5 / strength


@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("solver", ["auto", "picard", "anderson"])
def test_sinkhorns_own_steps_converge(solver: str, dtype: torch.dtype) -> None:
    problem = Transport(0.3, dtype)
    _, info = ti.fixed_point(problem.step, torch.zeros(5, dtype=dtype), (problem.cost,), solver=solver)
    assert info.converged


@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("solver", ["auto", "newton", "chord", "newton_krylov", "dogleg", "broyden", "anderson"])
def test_a_line_of_roots_of_a_smaller_kind(solver: str, dtype: torch.dtype) -> None:
    """Only z₀ − z₁ enters, and it has to be 1: any z with that is right, and large ones only if the start was large."""

    def g(z: Tensor) -> Tensor:
        d = z[0] - z[1] - 1
        return torch.stack([d + d**3, 2 * d])

    result = outcome(ti.root, g, torch.tensor([3.0, -2.0], dtype=dtype), solver=solver)
    if result.found:
        assert result.z.abs().max() <= 100
        assert abs(float(result.z[0] - result.z[1]) - 1) <= 100 * 3 * torch.finfo(dtype).eps ** 0.5


@pytest.mark.parametrize("solver", ["auto", "newton_cg", "bfgs", "lbfgs", "nonlinear_cg", "newton", "newton_krylov"])
def test_a_minimum_along_a_line(solver: str) -> None:
    """(z₀ − z₁ − 1)² + (z₀ − z₁ − 1)⁴ + (z₂ − 2)²: the first two are determined but for a constant."""

    def phi(z: Tensor) -> Tensor:
        d = z[0] - z[1] - 1
        return d**2 + d**4 + (z[2] - 2) ** 2

    result = outcome(ti.minimize, phi, torch.tensor([3.0, -2.0, 0.0], dtype=D), solver=solver)
    if result.found:
        assert result.z.abs().max() <= 100
        assert abs(float(result.z[0] - result.z[1]) - 1) <= 1e-5
        assert abs(float(result.z[2]) - 2) <= 1e-5
