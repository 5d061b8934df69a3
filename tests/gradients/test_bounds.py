"""Minima and fits within bounds: SciPy's values, what is refused, and how a solve there ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import optimize
from torch import Tensor

import torchimplicit as ti
from tests.problem_sets.mgh import PROBLEMS
from torchimplicit import Status
from torchimplicit.bounds import Bounded
from torchimplicit.layout import Layout
from torchimplicit.problems.minimize import Minimum
from torchimplicit.solvers.equations import Estimate

D = torch.float64
T = torch.linspace(0, 2, 12, dtype=D)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def phi(z: Tensor, b: Tensor) -> Tensor:
    """Not quadratic, and every unknown coupled to the next."""
    return (z - b).cosh().sum(-1) + (z[..., 1:] * z[..., :-1]).sum(-1) / 3 + z.pow(4).sum(-1) / 50


def residuals(z: Tensor, y: Tensor) -> Tensor:
    return z[..., :1] * torch.exp(-z[..., 1:2] * T) + z[..., 2:] - y


def held(z: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return (z == lower) | (z == upper)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("seed", range(4))
def test_minima_are_those_of_scipy(seed: int) -> None:
    b, lower = 2 * random(20, 5, seed=seed), -random(20, 5, seed=seed + 9).abs()
    z, info = ti.minimize(phi, torch.zeros(20, 5, dtype=D), (b,), batch_ndim=1, bounds=(lower, 0.7), rtol=1e-12)
    assert info.converged.all()
    active = held(z, lower, torch.tensor(0.7, dtype=D))
    assert 20 < active.sum() < 80  # some of each
    for i in range(20):
        found = optimize.minimize(
            lambda x, i=i: float(phi(torch.as_tensor(x), b[i])),
            torch.zeros(5).numpy(),
            jac=lambda x, i=i: torch.func.grad(phi)(torch.as_tensor(x), b[i]).numpy(),
            bounds=[(float(low), 0.7) for low in lower[i]],
            method="L-BFGS-B",
            options={"ftol": 1e-15, "gtol": 1e-11},
        )
        torch.testing.assert_close(z[i], torch.as_tensor(found.x), rtol=0, atol=1e-7)


def test_fits_are_those_of_scipy() -> None:
    y = 2 * torch.exp(-1.5 * T) + 0.3 + 0.05 * random(6, 12)
    lower, upper = torch.tensor([0.0, 0.0, 0.35], dtype=D), torch.tensor([1.8, torch.inf, torch.inf], dtype=D)
    z, info = ti.least_squares(
        residuals, torch.ones(6, 3, dtype=D), (y,), batch_ndim=1, bounds=(lower, upper), rtol=1e-12
    )
    assert info.converged.all()
    assert held(z, lower, upper).any()
    for i in range(6):
        found = optimize.least_squares(
            lambda x, i=i: residuals(torch.as_tensor(x), y[i]).numpy(),
            [1.0, 1.0, 1.0],
            bounds=(lower.numpy(), upper.numpy()),
            method="trf",
            ftol=1e-15,
            xtol=1e-15,
            gtol=1e-13,
        )
        torch.testing.assert_close(z[i], torch.as_tensor(found.x), rtol=1e-6, atol=1e-6)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_boxes_around_the_starts_of_the_standard_problems(problem: object) -> None:
    """Nowhere is the objective higher than where SciPy's L-BFGS-B ends."""
    part = torch.rand(2, problem.n, dtype=D, generator=torch.Generator().manual_seed(3))
    lower, upper = (
        problem.start + sign * part[i] * problem.start.abs().clamp(min=0.5) for i, sign in ((0, -1), (1, 1))
    )

    def phi(z: Tensor) -> Tensor:
        return problem.residuals(z).square().sum() / 2

    z = ti.minimize(phi, problem.start, bounds=(lower, upper), rtol=1e-9, on_failure="ignore").value
    found = optimize.minimize(
        lambda x: float(phi(torch.as_tensor(x))),
        problem.start.numpy(),
        jac=lambda x: torch.func.grad(phi)(torch.as_tensor(x)).numpy(),
        bounds=list(zip(lower.tolist(), upper.tolist(), strict=True)),
        method="L-BFGS-B",
        options={"maxiter": 3000, "maxfun": 5000, "ftol": 1e-15, "gtol": 1e-10},
    )
    assert ((lower <= z) & (z <= upper)).all()
    assert phi(z) <= found.fun * (1 + 1e-6) + 1e-12


def test_a_batch_is_solved_as_its_systems_are_one_by_one() -> None:
    b, lower = 2 * random(4, 5), -random(4, 5, seed=5).abs()
    b[2, 0] = torch.nan
    for options in ({}, {"batched": (True,)}):
        z, info = ti.minimize(
            phi, torch.zeros(4, 5, dtype=D), (b,), batch_ndim=1, bounds=(lower, None), on_failure="ignore", **options
        )
        for i in range(4):
            alone, single = ti.minimize(
                phi, torch.zeros(5, dtype=D), (b[i],), bounds=(lower[i], None), on_failure="ignore"
            )
            assert info.status[i] == single.status
            assert abs(int(info.steps[i]) - int(single.steps)) <= 1
            if i != 2:
                torch.testing.assert_close(z[i], alone, rtol=1e-8, atol=1e-10)


def test_without_active_bounds_nothing_changes() -> None:
    b = random(5).requires_grad_()
    z = ti.minimize(phi, torch.zeros(5, dtype=D), (b,), bounds=(None, 1e3)).value
    free = ti.minimize(phi, torch.zeros(5, dtype=D), (b,)).value
    torch.testing.assert_close(z, free, rtol=1e-7, atol=1e-8)
    (gradient,), (expected,) = (torch.autograd.grad(v.sum(), b) for v in (z, free))
    torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-8)


def test_trees_aux_and_numbers() -> None:
    start = {"a": torch.zeros(2, dtype=D), "b": torch.zeros((), dtype=D)}
    top = torch.tensor([0.5, 9.0], dtype=D, requires_grad=True)

    def objective(z: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return (z["a"] - 1).square().sum() + (z["b"] - z["a"][0]) ** 2, z["b"]

    z, info = ti.minimize(objective, start, bounds=(-3, {"a": top, "b": 7.0}), has_aux=True)
    torch.testing.assert_close(z["a"], torch.tensor([0.5, 1.0], dtype=D))
    assert info.aux == z["b"]
    (gradient,) = torch.autograd.grad(z["b"], top)
    torch.testing.assert_close(gradient, torch.tensor([1.0, 0.0], dtype=D))


def test_a_maximum_between_the_bounds_is_no_answer() -> None:
    z, info = ti.minimize(lambda z: -(z**2).sum(), torch.tensor([0.1, -0.2], dtype=D), bounds=(-1, 2))
    assert info.converged
    torch.testing.assert_close(z, torch.tensor([2.0, -1.0], dtype=D))
    info = ti.minimize(lambda z: -(z**2).sum(), torch.zeros(2, dtype=D), bounds=(-1, 2), on_failure="ignore").info
    assert info.status == Status.SADDLE


@pytest.mark.parametrize(
    ("bounds", "error", "message"),
    [
        (1.0, TypeError, r"pair \(lower, upper\)"),
        ((1.0, 0.0), ValueError, "above its upper bound"),
        ((torch.zeros(4), None), ValueError, r"shape \(4,\) do not fit z's \(3,\)"),
        (("0", None), TypeError, "numbers or tensors"),
        (([0.0, 0.0], None), ValueError, "a pytree like z"),
        ((torch.nan, None), ValueError, "is NaN"),
        ((torch.inf, None), ValueError, "no number lies between"),
        ((torch.zeros(3, dtype=torch.complex64), None), TypeError, "real numbers.*complex64"),
        ((torch.zeros(3, dtype=torch.bool), None), TypeError, "real numbers.*bool"),
    ],
)
def test_bounds_that_do_not_fit_are_refused(bounds: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ti.minimize(lambda z: (z**2).sum(), torch.zeros(3), bounds=bounds)


def test_methods_that_do_not_know_of_bounds_say_so() -> None:
    with pytest.raises(TypeError, match=r"LBFGS does not know of bounds.*projected_newton"):
        ti.minimize(lambda z: (z**2).sum(), torch.ones(3), bounds=(0, 1), solver="lbfgs")
    with pytest.raises(TypeError, match="real unknowns"):
        ti.minimize(lambda z: z.abs().square().sum(), torch.ones(3, dtype=torch.complex64), bounds=(0, 1))


@pytest.mark.parametrize("start", [1e-3, 1.0, 50.0])
def test_a_bound_at_the_edge_of_the_domain(start: float) -> None:
    """z − 3 log z on z ≥ 0: at the bound there is no value, and a trial there is refused."""
    z, info = ti.minimize(
        lambda z: (z - 3 * z.log()).sum(-1),
        torch.full((2, 1), start, dtype=D),
        bounds=(0, None),
        batch_ndim=1,
        rtol=1e-10,
    )
    assert info.converged.all()
    torch.testing.assert_close(z, torch.full((2, 1), 3.0, dtype=D), rtol=1e-6, atol=0)


def test_without_matrices_the_minimum_is_the_same() -> None:
    b = (3 * random(300)).requires_grad_()
    z, info = ti.minimize(phi, torch.zeros(300, dtype=D), (b,), bounds=(-1, 0.5), rtol=1e-10)
    first, *_ = ti.solvers.choose(Bounded(Minimum()), Layout.of(z, 0)).stages
    assert first == ti.solvers.ProjectedNewton(max_inner=200)
    assert info.products < 300
    dense = ti.minimize(
        phi, torch.zeros(300, dtype=D), (b,), bounds=(-1, 0.5), solver=ti.solvers.ProjectedNewton(), rtol=1e-10
    ).value
    assert 20 < held(z, torch.tensor(-1, dtype=D), torch.tensor(0.5, dtype=D)).sum() < 280
    torch.testing.assert_close(z, dense, rtol=1e-7, atol=1e-8)
    (gradient,), (expected,) = (torch.autograd.grad(v.sum(), b) for v in (z, dense))
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-7)


def test_numbers_as_bounds_have_the_precision_of_z() -> None:
    z = ti.minimize(lambda z: ((z - 2) ** 2).sum(), torch.zeros(2, dtype=D), bounds=(None, 0.7)).value
    assert z.tolist() == [0.7, 0.7]


def test_under_vmap_bounds_that_cross_are_a_failure_of_that_sample() -> None:
    def solve(lower: Tensor) -> ti.Solution:
        return ti.minimize(lambda z: z**2, torch.zeros((), dtype=D), bounds=(lower, 1.0), on_failure="ignore")

    z, info = torch.vmap(solve)(torch.tensor([0.5, 3.0], dtype=D))
    assert z[0] == 0.5
    assert info.status.tolist() == [Status.CONVERGED, Status.NONFINITE]


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e25])
def test_a_small_gradient_is_not_lost_beside_a_large_z(scale: float) -> None:
    """z − (z − ∇φ) is 0 where ∇φ is smaller than the rounding of z."""
    z, info = ti.minimize(
        lambda z: scale * ((z - 200) ** 4).sum(), torch.full((2,), 100.0, dtype=D), bounds=(0, 1e3), atol=0.0, rtol=1e-9
    )
    assert info.converged
    torch.testing.assert_close(z, torch.full((2,), 200.0, dtype=D), rtol=1e-3, atol=0)


def test_a_solver_that_stops_too_early_within_bounds_does_not_go_unnoticed() -> None:
    """Its estimate is always 0. Newton's correction of the free unknowns says more, and where it leads to a bound too."""

    class Asleep:
        max_steps, patience = 3, 3

        def init(self, equations: Any, z: Tensor) -> tuple[Tensor, None]:
            return equations.residual(z), None

        def step(self, equations: Any, z: Tensor, r: Tensor, state: None) -> tuple[Tensor, Tensor, None]:
            return z, r, None

        def estimate(self, z: Tensor, r: Tensor, state: None) -> Any:
            return Estimate(torch.zeros_like(z), 0.0)

    for target in (0.5, -7.0):
        info = ti.minimize(
            lambda z, a=target: (z - a) ** 2,
            torch.zeros((), dtype=D),
            bounds=(-1, 1),
            solver=Asleep(),
            on_failure="ignore",
        ).info
        assert not info.converged


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("bounds", [(-5.0, 5.0), (-1.0, None), (-1.0, -1.0)])
def test_an_objective_that_is_no_number_has_no_minimum_within_bounds(bounds: object, value: float) -> None:
    info = ti.minimize(
        lambda z: torch.where(z > 0, (z - 1) ** 2, value).sum(),
        -torch.ones(2, dtype=D),
        bounds=bounds,
        on_failure="ignore",
    ).info
    assert info.status == Status.NONFINITE
