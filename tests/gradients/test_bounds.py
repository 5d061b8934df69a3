"""Minima and fits within bounds: SciPy's values, and the derivatives of the solution in its bounds and parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from torch import Tensor

import torchimplicit as ti
from tests.problem_sets.mgh import PROBLEMS
from torchimplicit import Status
from torchimplicit.bounds import Bounded
from torchimplicit.interop import SciPy
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


def solution(b: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return ti.minimize(phi, torch.zeros_like(b), (b,), bounds=(lower, upper), rtol=1e-13).value


def limits() -> tuple[Tensor, Tensor, Tensor]:
    b = torch.tensor([2.0, -2.0, 0.1, 1.5, -0.2], dtype=D)
    return b, torch.full((5,), -1.0, dtype=D), torch.tensor([0.5, 3.0, 3.0, torch.inf, 2.0], dtype=D)


def test_derivatives_in_parameters_and_bounds_are_those_of_differences() -> None:
    b, lower, upper = limits()
    z = solution(b, lower, upper)
    assert held(z, lower, upper).tolist() == [True, True, False, False, False]
    arguments = [t.clone().requires_grad_() for t in (b, lower, upper)]
    exact = torch.autograd.functional.jacobian(solution, tuple(arguments))
    h = 1e-5
    for k in range(3):
        for j in range(5):
            step = torch.zeros(5, dtype=D)
            step[j] = h
            ends = [
                solution(*(t + sign * step if i == k else t for i, t in enumerate((b, lower, upper))))
                for sign in (1, -1)
            ]
            torch.testing.assert_close(exact[k][:, j], (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-8)
    assert exact[2][0, 0] == 1
    assert exact[1][1, 1] == 1


def test_second_derivatives_are_exact_too() -> None:
    b, lower, upper = (t.requires_grad_() for t in limits())
    assert torch.autograd.gradcheck(solution, (b, lower, upper), atol=1e-5)
    assert torch.autograd.gradgradcheck(solution, (b, lower, upper), atol=1e-5, fast_mode=True)


def test_derivatives_under_vmap_are_those_of_each_system() -> None:
    _, lower, upper = limits()
    b = 2 * random(3, 5)
    together = torch.vmap(torch.func.jacrev(solution, argnums=(0, 2)), in_dims=(0, None, None))(b, lower, upper)
    for i in range(3):
        alone = torch.func.jacrev(solution, argnums=(0, 2))(b[i], lower, upper)
        for part, single in zip(together, alone, strict=True):
            torch.testing.assert_close(part[i], single, rtol=1e-8, atol=1e-10)


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


@pytest.mark.sampled(3)
@pytest.mark.parametrize("max_inner", [None, 50])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_unrolled_steps_have_the_same_derivatives(max_inner: int | None, checkpoint: bool) -> None:
    arguments = [t.requires_grad_() for t in limits()]
    b, lower, upper = arguments
    z = ti.minimize(
        phi,
        torch.zeros(5, dtype=D),
        (b,),
        bounds=(lower, upper),
        solver=ti.solvers.ProjectedNewton(max_inner=max_inner),
        adjoint=ti.Unrolled(steps=12, checkpoint=checkpoint),
    ).value
    explicit, exact = (torch.autograd.grad(v.square().sum(), arguments) for v in (z, solution(b, lower, upper)))
    for one, other in zip(explicit, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize("adjoint", [ti.Implicit(), ti.Unrolled(steps=4), ti.OneStep()])
@pytest.mark.parametrize("target", [-3.0, 0.5, 3.0])
def test_between_equal_bounds_the_solution_is_the_bound(target: float, adjoint: object) -> None:
    """z* = b, whichever way the slope there points: derivative 1, and no second one."""
    b = torch.tensor(0.5, dtype=D, requires_grad=True)
    c = torch.tensor(target, dtype=D, requires_grad=True)
    zero = torch.zeros((), dtype=D)
    for z in (
        ti.minimize(lambda z: (z - c) ** 2 + z**4, zero, bounds=(b, b), adjoint=adjoint).value,
        ti.least_squares(lambda z: z + z**3 - c, zero, bounds=(b, b), adjoint=adjoint).value,
    ):
        assert z == 0.5
        first = torch.autograd.grad(z, (b, c), create_graph=True)
        assert [g.item() for g in first] == [1, 0]
        if isinstance(adjoint, ti.Implicit):
            assert not any(torch.autograd.grad(first[0], (b, c), allow_unused=True, materialize_grads=True))


def test_some_unknowns_fixed_by_equal_bounds_are_parameters_of_the_others() -> None:
    """The derivatives in the fixed values are those in a parameter that takes their place; also under vmap, and of second order."""
    b = 2 * random(3)
    fixed = torch.tensor([0.4, -0.3, 0.2], dtype=D)

    def bounded(b: Tensor, fixed: Tensor) -> Tensor:
        free = torch.full((1,), torch.inf, dtype=D)
        lower, upper = torch.cat([fixed[:1], -free, fixed[1:]]), torch.cat([fixed[:1], free, fixed[1:]])
        target = torch.cat([b, b[:1] * b[1:2]])
        return ti.minimize(phi, torch.zeros(4, dtype=D), (target,), bounds=(lower, upper), rtol=1e-14).value

    def reduced(b: Tensor, fixed: Tensor) -> Tensor:
        target = torch.cat([b, b[:1] * b[1:2]])
        whole = lambda z: torch.cat([fixed[:1], z, fixed[1:]])  # noqa: E731
        z = ti.minimize(lambda z: phi(whole(z), target), torch.zeros(1, dtype=D), rtol=1e-14).value
        return whole(z)

    both = {"argnums": (0, 1)}
    for derivative, values in (
        (lambda f: torch.func.jacrev(f, **both), fixed),
        (lambda f: torch.func.jacfwd(f, **both), fixed),
        (lambda f: torch.func.jacrev(torch.func.jacrev(f, argnums=1), **both), fixed),
        (lambda f: torch.vmap(torch.func.jacrev(f, **both), in_dims=(None, 0)), torch.stack([fixed, -fixed])),
    ):
        for one, other in zip(derivative(bounded)(b, values), derivative(reduced)(b, values), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


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


# No unit plays a part in who is held


POWERS = {torch.float64: 300, torch.float32: 40}
TARGET = [1.0, -2.0, 0.5, 4.0]


def in_a_unit(c: float, d: float, dtype: torch.dtype, **options: Any) -> tuple[ti.Solution, Tensor, Tensor]:
    """The minimum of c Σ ((z − x)² + (z − x)⁴) + d, each free unknown of which is x, and the derivatives of its sum in x and bounds.

    The third unknown is pressed on its lower bound, the fourth on its upper one.
    """
    x, size = torch.tensor(TARGET, dtype=dtype, requires_grad=True), 1e3
    limits = torch.tensor([[-size, -size, 0.8, -size], [size, size, size, 3.0]], dtype=dtype, requires_grad=True)
    found = ti.minimize(
        lambda z, x: c * ((z - x) ** 2 + (z - x) ** 4).sum() + d,
        torch.zeros(4, dtype=dtype),
        (x,),
        bounds=tuple(limits.unbind()),
        **options,
    )
    return found, *torch.autograd.grad(found.value.sum(), (x, limits))


@pytest.mark.parametrize("examples", [12, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", POWERS)
def test_no_unit_of_the_objective_plays_a_part(dtype: torch.dtype, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(power=st.integers(-POWERS[dtype], POWERS[dtype]), shift=st.sampled_from([0.0, 1.0, -3e3]))
    def check(power: int, shift: float) -> None:
        c = 2.0**power
        (z, info), in_x, in_limits = in_a_unit(c, shift * c, dtype)
        assert info.converged
        assert info.adjoint.converged
        rtol = 10 * torch.finfo(dtype).eps ** 0.5
        torch.testing.assert_close(z, torch.tensor([1.0, -2.0, 0.8, 3.0], dtype=dtype), rtol=rtol, atol=0)
        assert z[2:].tolist() == torch.tensor([0.8, 3.0], dtype=dtype).tolist()  # exactly
        torch.testing.assert_close(in_x, torch.tensor([1.0, 1, 0, 0], dtype=dtype), rtol=rtol, atol=rtol)
        torch.testing.assert_close(
            in_limits, torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 1]], dtype=dtype), rtol=rtol, atol=rtol
        )

    check()


@pytest.mark.parametrize("dtype", POWERS)
def test_no_unit_of_the_residuals_of_a_fit_plays_a_part(dtype: torch.dtype) -> None:
    """z₀ e^(−z₁ t) with the rate held at 1: then z₀ is linear in y, with the weights e⁻ᵗ / Σ e⁻²ᵗ."""
    t = T.to(dtype)
    weights = (-T).exp() / (-2 * T).exp().sum()

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(power=st.integers(-POWERS[dtype] // 2, POWERS[dtype] // 2))
    def check(power: int) -> None:
        y = (3 * (-1.5 * T).exp()).to(dtype).requires_grad_()
        z, info = ti.least_squares(
            lambda z, y: 2.0**power * (z[0] * (-z[1] * t).exp() - y),
            torch.tensor([2.0, 0.5], dtype=dtype),
            (y,),
            bounds=(-1e3, torch.tensor([1e3, 1.0], dtype=dtype)),
        )
        assert info.converged
        rtol = 100 * torch.finfo(dtype).eps ** 0.5
        torch.testing.assert_close(z.double(), torch.stack([weights @ y.double(), T.new_ones(())]), rtol=rtol, atol=0)
        (gradient,) = torch.autograd.grad(z.sum(), y)
        torch.testing.assert_close(gradient.double(), weights, rtol=rtol, atol=rtol)

    check()


@pytest.mark.parametrize(
    "solver", ["newton", "newton_krylov", "broyden", "anderson", SciPy("trust-constr"), SciPy("SLSQP")]
)
def test_what_others_leave_next_to_its_bound_is_put_there(solver: Any) -> None:
    (z, info), in_x, in_limits = in_a_unit(0.1, 0.0, D, solver=solver, rtol=1e-6)
    assert info.converged
    assert z[2:].tolist() == [0.8, 3.0]
    torch.testing.assert_close(in_x, torch.tensor([1.0, 1, 0, 0], dtype=D), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(in_limits, torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 1]], dtype=D), rtol=1e-6, atol=1e-6)


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


@pytest.mark.parametrize("flat", [False, True])
def test_a_minimum_beside_a_bound_that_holds_another_has_a_derivative_unless_it_is_flat(flat: bool) -> None:
    """What is seen from beside z* says whether there is one; there the bound still holds what it holds."""
    x = torch.tensor([0.25, 3.0], dtype=D, requires_grad=True)
    z, info = ti.minimize(
        lambda z, x: (z[0] - x[0]) ** (4 if flat else 2) + (z[1] - x[1]) ** 2 + z[0] * (z[1] - 1),
        torch.ones(2, dtype=D),
        (x,),
        bounds=(-5.0, 1.0),
        on_failure="ignore",
    )
    assert z[1] == 1
    (gradient,) = torch.autograd.grad(z.sum(), x)
    assert (info.converged and info.adjoint.converged) != flat
    if not flat:
        torch.testing.assert_close(gradient, torch.tensor([1.0, 0.0], dtype=D), rtol=1e-7, atol=1e-9)
