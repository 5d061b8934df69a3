"""What the methods for minima promise: they end in minima, each system on its own, whatever the start."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

import torchimplicit as ti
from torchimplicit import Status
from torchimplicit.layout import Layout
from torchimplicit.problems.minimize import Minimum

D = torch.float64
METHODS = ["trust_newton", "newton_cg", "bfgs", "lbfgs", "nonlinear_cg"]
PROJECTED = "projected_newton"  # which takes bounds too


def random(*shape: int, seed: int = 0, dtype: torch.dtype = D) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def rosenbrock(z: Tensor, a: Tensor) -> Tensor:
    """Minimum a·(1, a) with the value 0."""
    return 100 * (z[..., 1] - z[..., 0] ** 2) ** 2 + (a - z[..., 0]) ** 2


def spd(n: int, seed: int = 0) -> Tensor:
    A = random(n, n, seed=seed)
    return A @ A.mT / n + torch.eye(n, dtype=D)


@pytest.mark.parametrize("solver", METHODS)
def test_the_gradient_of_a_minimum_is_that_of_its_closed_form(solver: str) -> None:
    a = torch.tensor(1.3, dtype=D, requires_grad=True)
    z, info = ti.minimize(rosenbrock, torch.tensor([-1.2, 1.0], dtype=D), (a,), solver=solver, rtol=1e-11)
    assert info.converged
    torch.testing.assert_close(z, torch.stack([a, a**2]), rtol=1e-9, atol=0)
    (gradient,) = torch.autograd.grad(z[1] + 3 * z[0], a, create_graph=True)
    torch.testing.assert_close(gradient, 2 * a + 3, rtol=1e-8, atol=0)
    (second,) = torch.autograd.grad(gradient, a)
    torch.testing.assert_close(second, torch.tensor(2.0, dtype=D), rtol=1e-6, atol=0)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("solver", METHODS)
def test_a_batch_is_solved_as_its_systems_are_one_by_one(solver: str) -> None:
    """A start at the minimum, easy and hard ones, one without a value, and a function without a minimum."""
    z0 = torch.cat([torch.ones(1, 2), torch.tensor([[-1.2, 1], [0, 0], [3, -2], [5, 5], [torch.nan, 0], [1, 1]])]).to(D)
    slope = torch.zeros(7, dtype=D)
    slope[6] = 1e4
    a = torch.ones(7, dtype=D)

    def phi(z: Tensor, a: Tensor, slope: Tensor) -> Tensor:
        return rosenbrock(z, a) + (z[..., 0] ** 2 / 4).exp() * (z[..., 0] - a) ** 2 - slope * z[..., 1] ** 3

    options = {"solver": solver, "on_failure": "ignore", "max_steps": 400, "rtol": 1e-11}
    together, info = ti.minimize(phi, z0, (a, slope), batch_ndim=1, **options)
    for i in range(7):
        z, alone = ti.minimize(phi, z0[i], (a[i], slope[i]), **options)
        assert info.status[i] == alone.status, i
        assert abs(int(info.steps[i]) - int(alone.steps)) <= 1, i
        torch.testing.assert_close(together[i], z, rtol=1e-9, atol=1e-12, equal_nan=True)
    assert info.converged[:5].all()
    assert not info.converged[5:].any()
    torch.testing.assert_close(together[:5], torch.ones(5, 2, dtype=D), rtol=1e-5, atol=0)


@pytest.mark.parametrize("solver", METHODS)
def test_no_step_of_a_least_squares_fit_ends_in_a_maximum(solver: str) -> None:
    z, info = ti.least_squares(
        lambda z: z**2 - 1, torch.tensor([[0.1], [-0.01], [2.0]], dtype=D), batch_ndim=1, solver=solver
    )
    assert info.converged.all()
    torch.testing.assert_close(z[:2], torch.tensor([[1.0], [-1.0]], dtype=D), rtol=1e-7, atol=0)
    torch.testing.assert_close(
        z[2].abs(), torch.ones(1, dtype=D), rtol=1e-7, atol=0
    )  # a long step may pass the maximum


@pytest.mark.parametrize("seed", range(5))
def test_by_default_a_minimum_is_found_past_saddle_points(seed: int) -> None:
    """Each unknown's double well has the stationary points ±1 (minima) and 0: 3ⁿ in all, of which 2ⁿ are minima."""
    z0 = 0.2 * random(50, 4, seed=seed)
    mix = torch.linalg.qr(random(4, 4, seed=seed + 10)).Q
    z, info = ti.minimize(lambda z: (((z @ mix) ** 2 - 1) ** 2).sum(-1), z0, batch_ndim=1)
    assert info.converged.all()
    torch.testing.assert_close((z @ mix).abs(), torch.ones(50, 4, dtype=D), rtol=1e-6, atol=0)


def test_a_start_whose_gradient_does_not_see_the_way_down_leaves_it_all_the_same() -> None:
    """x² − y² + y⁴/2 from (1, 0): the gradient points to the saddle point (0, 0), the minima lie at (0, ±1). The hard case of the
    trust region."""
    z, info = ti.minimize(lambda z: z[0] ** 2 - z[1] ** 2 + z[1] ** 4 / 2, torch.tensor([1.0, 0.0], dtype=D))
    assert info.converged
    torch.testing.assert_close(z.abs(), torch.tensor([0.0, 1.0], dtype=D), rtol=1e-7, atol=1e-7)


def test_beyond_the_dense_limit_a_minimum_is_found_too() -> None:
    n = 400
    z, info = ti.minimize(lambda z: ((z**2 - 1) ** 2).sum(), 0.3 * random(n))
    assert isinstance(ti.solvers.choose(Minimum(), Layout.of(torch.zeros(n), 0)), ti.solvers.NewtonCG)
    assert info.converged
    torch.testing.assert_close(z.abs(), torch.ones(n, dtype=D), rtol=1e-6, atol=0)


def test_by_default_a_convex_quadratic_takes_one_step_from_anywhere() -> None:
    A, b = spd(6), 1e4 * random(3, 6)
    z, info = ti.minimize(
        lambda z: ((z @ A) * z).sum(-1) / 2 - (z * b).sum(-1), 1e6 * random(3, 6, seed=1), batch_ndim=1
    )
    assert (info.steps == 1).all()
    torch.testing.assert_close(z, torch.linalg.solve(A, b.mT).mT, rtol=1e-8, atol=0)


@pytest.mark.parametrize("solver", ["trust_newton", "newton_cg", "bfgs", "lbfgs", "nonlinear_cg"])
def test_an_ill_conditioned_quadratic_in_single_precision_reaches_the_default_tolerance(solver: str) -> None:
    scale = torch.logspace(0, 3, 8)
    z, info = ti.minimize(lambda z: (scale * (z - 1) ** 2).sum() / 2 + 5, torch.zeros(8), solver=solver)
    assert info.converged
    torch.testing.assert_close(scale * (z - 1), torch.zeros(8), rtol=0, atol=1e-3 * float(scale.norm()))


@pytest.mark.parametrize("solver", ["bfgs", "lbfgs", "nonlinear_cg"])
def test_a_quadratic_of_n_unknowns_takes_about_n_lines(solver: str) -> None:
    n = 8
    A, b = spd(n), random(n)
    info = ti.minimize(lambda z: z @ A @ z / 2 - b @ z, torch.zeros(n, dtype=D), solver=solver).info
    assert info.converged
    assert info.steps <= 3 * n


@pytest.mark.parametrize("solver", METHODS)
def test_steps_out_of_the_domain_are_shortened(solver: str) -> None:
    """Σ z − 3 log z, whose minimum is 3: a full step from the flat side leaves the domain of the logarithm."""
    z0 = torch.tensor([[1e-3, 50.0], [40.0, 60.0]], dtype=D)
    z, info = ti.minimize(lambda z: (z - 3 * z.log()).sum(-1), z0, solver=solver, batch_ndim=1, rtol=1e-10)
    assert info.converged.all()
    torch.testing.assert_close(z, torch.full((2, 2), 3.0, dtype=D), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("solver", "bounds"), [*((name, None) for name in METHODS), *((PROJECTED, b) for b in (None, (-1, 1)))]
)
def test_evaluations_are_counted_truly(solver: str, bounds: tuple[float, float] | None) -> None:
    calls = 0

    def phi(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return (z**4 / 4 + (z - 2) ** 2).sum()

    with torch.no_grad():
        info = ti.minimize(phi, torch.zeros(3, dtype=D), solver=solver, bounds=bounds).info
    assert int(info.evaluations) == calls


@pytest.mark.parametrize("solver", [*METHODS, PROJECTED])
@pytest.mark.parametrize("solve", [ti.root, ti.fixed_point])
def test_equations_have_nothing_to_go_down_on(solver: str, solve: Callable[..., object]) -> None:
    with pytest.raises(TypeError, match=r"goes downhill.*Use minimize or least_squares.*Newton"):
        solve(lambda z: z / 2 - 1, torch.zeros(2), solver=solver)


@pytest.mark.parametrize("solver", METHODS)
def test_a_function_without_a_minimum_is_a_failure(solver: str) -> None:
    info = ti.minimize(lambda z: -(z**2).sum() + z[0], torch.ones(3, dtype=D), solver=solver, on_failure="ignore").info
    assert info.status in (Status.DIVERGED, Status.NONFINITE, Status.MAX_STEPS)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("solver", METHODS)
def test_they_hold_under_vmap_and_when_unrolled(solver: str) -> None:
    b = random(4, 3)

    def phi(z: Tensor, b: Tensor) -> Tensor:
        return (z - b).cosh().sum() + z @ z / 2

    def solved(b: Tensor, **options: object) -> Tensor:
        return ti.minimize(phi, torch.zeros(3, dtype=D), (b,), solver=solver, rtol=1e-12, **options).value

    exact = torch.func.vmap(torch.func.jacrev(solved))(b)
    z = torch.func.vmap(solved)(b)
    curvature = (z - b).cosh()
    torch.testing.assert_close(exact, torch.diag_embed(curvature / (1 + curvature)), rtol=1e-8, atol=1e-10)
    explicit = torch.autograd.functional.jacobian(lambda b: solved(b, adjoint=ti.Unrolled()), b[0])
    # The lengths of the steps count as constants, so that this derivative converges after z itself.
    torch.testing.assert_close(explicit, exact[0], rtol=1e-3, atol=1e-3)


def test_the_factors_of_the_hessian_at_the_minimum_serve_in_the_backward() -> None:
    A, b = spd(9), random(9).requires_grad_()
    z, info = ti.minimize(lambda z: (z @ A @ z) / 2 + z.cosh().sum() - b @ z, torch.zeros(9, dtype=D))
    z.sum().backward()
    assert info.adjoint.products <= 2  # a dense Hessian would take 9, and one product to see that it is right


@pytest.mark.parametrize("parameter", [{"memory": 0}, {"memory": 2.5}])
def test_parameters_that_do_not_fit_are_refused(parameter: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="memory >= 1"):
        ti.solvers.LBFGS(**parameter)


def test_without_bounds_projected_newton_finds_the_same_minimum() -> None:
    b, z0 = random(3, 4), torch.zeros(3, 4, dtype=D)

    def phi(z: Tensor) -> Tensor:
        return (z - b).cosh().sum(-1) + z.square().sum(-1)

    z, info = ti.minimize(phi, z0, batch_ndim=1, solver="projected_newton", rtol=1e-11)
    assert info.converged.all()
    torch.testing.assert_close(z, ti.minimize(phi, z0, batch_ndim=1, rtol=1e-11).value, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("method", ["trust_newton", "newton_cg", "projected_newton"])
def test_where_the_function_raises_the_step_is_shortened(method: str) -> None:
    """Newton's first step from 0 goes to 4, beyond the domain; the minimum is at log 5."""

    def phi(z: Tensor) -> Tensor:
        if bool((z > 2.5).any()):
            raise ValueError("out of the domain")
        return (z.exp() - 5 * z).sum(-1)

    z, info = ti.minimize(phi, torch.zeros(3, 2, dtype=D), batch_ndim=1, solver=method, rtol=1e-10)
    assert info.converged.all()
    torch.testing.assert_close(z, torch.full((3, 2), 5.0, dtype=D).log(), rtol=1e-9, atol=0)

    def wall(z: Tensor) -> Tensor:
        if bool((z > 1.5).any()):
            raise ValueError("a wall before the minimum")
        return (z.exp() - 5 * z).sum(-1)

    with pytest.warns(ti.ConvergenceWarning, match="raised ValueError: a wall before the minimum"):
        ti.minimize(wall, torch.zeros(3, 2, dtype=D), batch_ndim=1, solver=method)


def test_unknowns_that_act_on_each_other_go_to_their_bounds_in_one_step() -> None:
    """Torques of a pendulum that is to come upright, from a state where the first ones are at their limit. Newton's step cut off at
    the limits leads uphill by 155 from a millionth beside them; 500 steps did not suffice."""
    length, mass, dt = 0.7261, 0.7793, 0.1

    def cost(u: Tensor) -> Tensor:
        angle, speed = torch.tensor([-0.1120, -0.5598], dtype=u.dtype)
        total = 0.01 * u.square().sum()
        for torque in u:
            speed = speed + dt * (9.81 / length * angle.sin() + torque / (mass * length**2))
            angle = angle + dt * speed
            total = total + angle**2 + 0.1 * speed**2
        return total + 10 * angle**2

    u, info = ti.minimize(cost, torch.zeros(15, dtype=torch.float64), bounds=(-2, 2), rtol=1e-10, on_failure="raise")
    assert info.steps <= 20
    theirs = minimize(
        lambda u: (cost(torch.tensor(u)).item(), torch.func.grad(cost)(torch.tensor(u)).numpy()),
        *([0.0] * 15,),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-2, 2)] * 15,
        options={"ftol": 1e-15, "gtol": 1e-10},
    )
    assert abs(cost(u).item() - theirs.fun) < 1e-12
    assert (u == 2).sum() == 2
