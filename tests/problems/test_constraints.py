"""Minima and fits under constraints: closed forms, the sign of the multipliers, derivatives of all orders, batches, what is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit import Constraints, Status

D = torch.float64


def real(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=D)


def linear(z: Tensor, *_: Any) -> Tensor:
    return (z * real(1.0, 2.0)).sum(-1)


def test_multipliers_have_the_sign_that_is_stated() -> None:
    """min z₁ + 2z₂ on and in the disk of radius r: z = −r (1, 2)/√5, and with L = φ + m (‖z‖² − r²), m = √5 / 2r."""
    for kind in ("equal", "at_most"):
        r = real(1.5)[0].requires_grad_()
        constraints = Constraints(**{kind: lambda z, r: (z**2).sum() - r**2})
        z, info = ti.minimize(linear, real(0.3, -0.2), (r,), constraints=constraints, rtol=1e-12)
        assert info.converged
        torch.testing.assert_close(z, -r * real(1, 2) / 5**0.5)
        m = info.dual.equality if kind == "equal" else info.dual.inequality
        torch.testing.assert_close(m, 5**0.5 / (2 * r))
        torch.testing.assert_close(
            torch.autograd.grad(linear(z), r, retain_graph=True)[0], -m.detach() * 2 * r.detach()
        )
        torch.testing.assert_close(torch.autograd.grad(m, r)[0], -(5**0.5) / (2 * r.detach() ** 2))  # of a multiplier
    z, info = ti.minimize(linear, real(2.0, -0.2), constraints=Constraints(at_most=lambda z: 1 - z))  # z ≥ 1
    assert (info.dual.inequality > 0).all()
    torch.testing.assert_close(info.dual.inequality, real(1, 2))


def test_the_forces_of_bounds_are_prices_too() -> None:
    low, high = real(0.0, 0.0, 0.0).requires_grad_(), real(1.0, 0.5, 2.0).requires_grad_()
    target = real(-1.0, 2.0, 0.9)

    def solve(low: Tensor, high: Tensor) -> ti.Solution:
        return ti.minimize(
            lambda z: ((z - target) ** 2).sum() / 2,
            real(0.5, 0.5, 0.5),
            bounds=(low, high),
            constraints=Constraints(equal=lambda z: z.sum() - 1),
            rtol=1e-12,
        )

    z, info = solve(low, high)
    torch.testing.assert_close(z, real(0, 0.5, 0.5))
    assert info.dual.equality.item() == pytest.approx(0.4)  # z₃ − 0.9 + equality = 0
    torch.testing.assert_close(info.dual.bounds, real(-1.4, 1.1, 0))
    prices = torch.autograd.grad(((z - target) ** 2).sum() / 2, (low, high))
    torch.testing.assert_close(prices[0] + prices[1], -info.dual.bounds.detach())
    assert torch.autograd.gradcheck(lambda low, high: solve(low, high).info.dual.bounds, (low, high))


def hs71(z: Tensor, p: Tensor) -> tuple[Any, ...]:
    constraints = Constraints(
        equal=lambda z, p: (z**2).sum(-1) - 40 * p[..., 0], at_most=lambda z, p: 25 * p[..., 1] - z.prod(-1)
    )
    solution = ti.minimize(
        lambda z, p: z[..., 0] * z[..., 3] * z[..., :3].sum(-1) + z[..., 2] * p[..., 2],
        z,
        (p,),
        bounds=(1.0, 5.0),
        constraints=constraints,
        batch_ndim=z.ndim - 1,
        rtol=1e-12,
    )
    return solution.value, *solution.info.dual[:2]


def test_derivatives_of_unknowns_and_multipliers() -> None:
    p = real(1.0, 1.02, 0.9).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: hs71(real(1, 5, 5, 1), p), (p,), fast_mode=True)


@pytest.mark.slow
def test_second_derivatives_of_unknowns_and_multipliers() -> None:
    p = real(1.0, 1.02, 0.9).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda p: hs71(real(1, 5, 5, 1), p), (p,))


def test_transforms_and_batches_are_the_same_one_by_one() -> None:
    p = torch.stack([real(1.0, 1.0, 1.0), real(1.1, 0.9, 1.2), real(0.9, 1.0, 0.7)])
    start = real(1, 5, 5, 1)
    single = [hs71(start, row) for row in p]
    batch = hs71(start.expand(3, 4), p)
    mapped = torch.vmap(lambda p: hs71(start, p))(p)
    for k in range(3):
        expected = torch.stack([one[k] for one in single])
        torch.testing.assert_close(batch[k], expected, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(mapped[k], expected, rtol=1e-9, atol=1e-10)

    def fit(p: Tensor) -> ti.Solution:
        return ti.minimize(lambda z: (z**2).sum(), real(1, 1), constraints=Constraints(equal=lambda z: z.sum() - p))

    assert torch.vmap(fit)(p[:, 0]).info.converged.tolist() == [True] * 3  # facts go through transforms
    one = lambda p: hs71(start, p)[0]  # noqa: E731
    J = torch.func.jacrev(one)(p[0])
    torch.testing.assert_close(torch.func.jacfwd(one)(p[0]), J, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(torch.vmap(torch.func.jacrev(one))(p)[0], J, rtol=1e-8, atol=1e-9)


def test_a_fit_under_constraints_is_the_closed_form_of_its_optimality_conditions() -> None:
    """min ½‖Az − y‖² with Bz = d: a linear system in z and the multipliers."""
    rng = torch.Generator().manual_seed(0)
    A, y = torch.randn(8, 4, generator=rng, dtype=D), torch.randn(8, generator=rng, dtype=D)
    B, d = torch.randn(2, 4, generator=rng, dtype=D), torch.randn(2, generator=rng, dtype=D)
    y.requires_grad_(), d.requires_grad_()
    constraints = Constraints(equal=lambda z: B @ z - d)  # captured, not given
    z, info = ti.least_squares(lambda z: A @ z - y, torch.zeros(4, dtype=D), constraints=constraints)
    assert info.converged
    assert info.steps == 1
    K = torch.cat([torch.cat([A.T @ A, B.T], 1), torch.cat([B, torch.zeros(2, 2, dtype=D)], 1)])
    expected = torch.linalg.solve(K, torch.cat([A.T @ y, d]))
    torch.testing.assert_close(torch.cat([z, info.dual.equality]), expected, rtol=1e-8, atol=1e-9)
    found = torch.autograd.grad(z.square().sum() + info.dual.equality[0], (y, d))
    exact = torch.autograd.grad(expected[:4].square().sum() + expected[4], (y, d))
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-8)


def test_trees_and_has_aux() -> None:
    z0 = {"a": real(0.5), "b": real(0.1, 0.2)}
    constraints = Constraints(equal=lambda z: {"sum": z["a"] + z["b"].sum() - 1}, at_most=lambda z: (z["b"] - 0.2,))

    def phi(z: dict[str, Tensor]) -> tuple[Tensor, str]:
        return (z["a"] ** 2).sum() + ((z["b"] - 1) ** 2).sum(), "seen"

    z, info = ti.minimize(phi, z0, constraints=constraints, has_aux=True)
    torch.testing.assert_close(z, {"a": real(0.6), "b": real(0.2, 0.2)})
    assert info.aux == "seen"
    torch.testing.assert_close(info.dual.equality["sum"], real(-1.2))
    torch.testing.assert_close(info.dual.inequality[0], real(2.8, 2.8))


def test_each_system_of_a_batch_has_its_own_end() -> None:
    """½k‖z‖² + qz₁ with z₂² = r and z₁ ≥ 0: held, contradictory, unbounded, held without force, NaN, and free."""
    k, q = real(1, 1, 0, 1, 1, 2), real(1, 1, -1, 0, 1, -3).requires_grad_()
    r = real(1, -1, 1, 4, torch.nan, 9).requires_grad_()
    constraints = Constraints(
        equal=lambda z, k, q, r: z[:, 1:] ** 2 - r.unsqueeze(-1), at_most=lambda z, k, q, r: -z[:, :1]
    )
    with pytest.warns(ti.ConvergenceWarning, match="primal_infeasible"):
        z, info = ti.minimize(
            lambda z, k, q, r: k * z.square().sum(-1) / 2 + q * z[:, 0],
            torch.ones(6, 2, dtype=D),
            (k, q, r),
            constraints=constraints,
            batch_ndim=1,
            batched=(True, True, True),
        )
    solved = "converged"
    assert info.status_names == [solved, "primal_infeasible", "diverged", solved, "nonfinite", solved]
    found = info.converged
    assert ((z[found] - torch.stack([real(0, 1), real(0, 2), real(1.5, 3)])).abs() < 1e-7).all()
    inequality, equality = (part[found].squeeze(-1) for part in info.dual[:2])
    torch.testing.assert_close(inequality, real(1, 0, 0), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(equality, -k[found] / 2, rtol=1e-7, atol=1e-7)
    with pytest.warns(ti.ConvergenceWarning, match="degenerate"):
        grads = torch.autograd.grad(z[found].sum(), (q, r))
    assert [info.adjoint.status_names[i] for i in (0, 3, 5)] == [solved, "degenerate", solved]
    for grad, exact in zip(grads, (real(0, -0.5), real(1 / 2, 1 / 6)), strict=True):
        torch.testing.assert_close(grad[[0, 5]], exact, rtol=1e-6, atol=1e-7)
        assert not grad[found].isnan().any()


def test_inequalities_and_bounds_that_contradict_each_other_are_infeasible() -> None:
    with pytest.warns(ti.ConvergenceWarning, match="contradict"):
        _, info = ti.minimize(
            lambda z: (z**2).sum(),
            real(0.5, 0.5),
            bounds=(0.0, 1.0),
            constraints=Constraints(at_most=lambda z: 3 - z.sum()),
        )
    assert info.status == Status.PRIMAL_INFEASIBLE


@pytest.mark.parametrize("falls", [lambda z: z[0], lambda z: -(z[0] ** 2), lambda z: -z[0].exp()])
def test_an_objective_that_falls_for_ever_is_told(falls: Any) -> None:
    with pytest.warns(ti.ConvergenceWarning, match="diverged.*without bound.*falls for ever"):
        _, info = ti.minimize(falls, real(0.5, 0.5), constraints=Constraints(equal=lambda z: z[1] - 1))
    assert info.status == Status.DIVERGED


def test_a_minimum_far_away_is_not_taken_for_one_at_infinity() -> None:
    z, info = ti.minimize(
        lambda z: ((z - 1e6) ** 2).sum(), real(0.5, 0.5), constraints=Constraints(at_most=lambda z: z[1] - 1e5)
    )
    assert info.converged
    torch.testing.assert_close(z, real(1e6, 1e5))


def test_constraints_that_depend_on_each_other_are_met() -> None:
    twice = Constraints(equal=lambda z: torch.stack([z.sum() - 1, 2 * z.sum() - 2]))
    z, info = ti.minimize(lambda z: ((z - real(0.3, 0.2)) ** 2).sum(), real(1.0, 0.3), constraints=twice)
    assert info.converged
    torch.testing.assert_close(z, real(0.55, 0.45))


def test_constraints_that_depend_on_each_other_leave_the_derivative_exact_where_there_is_one() -> None:
    """Of ½ Σ dᵢzᵢ² + p·z on the plane Σz = s: projected along the plane. Constraints of the arguments that stay consistent count too;
    those that would not have no derivative."""
    d = real(1, 2, 3)

    def solved(p: Tensor, s: Tensor, other: Tensor) -> tuple[Tensor, Any]:
        plane = Constraints(equal=lambda z: torch.stack([z.sum() - s, 2 * z.sum() - s - other]))
        return ti.minimize(lambda z: (d * z * z).sum() / 2 + (p * z).sum(), torch.zeros_like(p), constraints=plane)

    p, s = real(1, 2, 3).requires_grad_(), torch.ones((), dtype=D, requires_grad=True)
    z, info = solved(p, s, s)
    of_p, of_s = torch.autograd.grad(z[0], (p, s))
    inverse = 1 / d
    torch.testing.assert_close(of_p, -(torch.eye(3, dtype=D)[0] - inverse / inverse.sum()) * inverse[0])
    torch.testing.assert_close(of_s, inverse[0] / inverse.sum())
    assert info.adjoint.converged
    z, _ = solved(p.detach(), s, s.detach())
    with pytest.warns(ti.ConvergenceWarning, match="singular"):
        z[0].backward()


@pytest.mark.slow
def test_no_unit_of_the_constraints_or_the_objective_changes_the_solution() -> None:
    for of_phi, of_c in ((1e6, 1.0), (1e-6, 1.0), (1.0, 1e6), (1.0, 1e-6)):
        constraints = Constraints(equal=lambda z, u=of_c: u * ((z**2).sum() - 1))
        z, info = ti.minimize(lambda z, u=of_phi: u * linear(z), real(0.3, -0.2), constraints=constraints)
        assert info.converged
        torch.testing.assert_close(z, -real(1, 2) / 5**0.5, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(
            info.dual.equality * of_c / of_phi, torch.tensor(5**0.5 / 2, dtype=D), rtol=1e-6, atol=0
        )


def test_single_precision() -> None:
    start = torch.tensor([0.5, 0.5])
    z, info = ti.minimize(lambda z: z.sum(), start, constraints=Constraints(equal=lambda z: (z**2).sum() - 1))
    assert info.converged
    torch.testing.assert_close(z, torch.full((2,), -(0.5**0.5)), rtol=1e-3, atol=0)
    never = Constraints(at_most=lambda z: 3 - z.sum())
    _, info = ti.minimize(lambda z: (z**2).sum(), start, bounds=(0.0, 1.0), constraints=never, on_failure="ignore")
    assert info.status == Status.PRIMAL_INFEASIBLE


@pytest.mark.slow
def test_where_there_are_no_multipliers_nothing_is_claimed() -> None:
    """min z₁ where −z₁³ ≤ 0: at the solution 0 the gradient of the constraint vanishes, and there are no multipliers."""
    _, info = ti.minimize(
        lambda z: z[0], real(1.0), constraints=Constraints(at_most=lambda z: -(z**3)), on_failure="ignore"
    )
    assert not info.converged


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(TypeError, match="give equal="):
        Constraints()
    with pytest.raises(TypeError, match="must be a function"):
        Constraints(equal=real(1.0))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"ti\.Constraints"):
        ti.minimize(linear, real(1, 1), constraints=lambda z: z)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch dimensions"):
        ti.minimize(linear, torch.ones(3, 2, dtype=D), batch_ndim=1, constraints=Constraints(equal=lambda z: z[0, 0]))
    with pytest.raises(ValueError, match="the unknowns and the multipliers together"):
        ti.minimize(linear, real(1, 1), sparsity=torch.eye(2), constraints=Constraints(equal=lambda z: z))
    for solver in (
        "newton_krylov",
        "anderson",
        "trust_newton",
        ti.solvers.Newton(),
    ):  # the first two were wrong, and converged
        with pytest.raises(TypeError, match="does not judge the multipliers"):
            ti.minimize(linear, real(1, 1), solver=solver, constraints=Constraints(equal=lambda z: z.sum() - 1))
    with pytest.raises(TypeError, match="needs constraints"):
        ti.minimize(linear, real(1, 1), solver="augmented_lagrangian")


def test_multipliers_are_not_left_behind_where_z_is_found_in_one_step() -> None:
    """The constraint alone determines z here, so that Newton's correction of z vanishes before the multiplier is right."""
    z, info = ti.minimize(
        lambda z: -z.log().sum(),
        torch.ones(2, dtype=torch.float64),
        constraints=ti.Constraints(at_most=lambda z: z.sum() - 1),
    )
    torch.testing.assert_close(z, torch.full((2,), 0.5, dtype=torch.float64))
    assert float(info.dual.inequality) == pytest.approx(2, rel=1e-7)


def test_the_forces_of_bounds_are_those_of_the_random_numbers_of_the_solve() -> None:
    """φ = Σ (z − 2 − noise)² with z ≤ 1: the force is 2 (1 + noise), and the dual of the constraint, which does not hold, is 0."""
    torch.manual_seed(0)
    noise = torch.rand(3, dtype=D)
    torch.manual_seed(0)
    _, info = ti.minimize(
        lambda z: (z - 2 - torch.rand(3, dtype=D)).square().sum(),
        torch.zeros(3, dtype=D),
        bounds=(None, 1.0),
        constraints=Constraints(at_most=lambda z: z.sum() - 10),
        randomness="frozen",
    )
    torch.testing.assert_close(info.dual.bounds.detach(), 2 * (1 + noise))


def test_constraints_without_a_number_are_refused() -> None:
    with pytest.raises(ValueError, match="neither equal nor at_most returned a number"):
        ti.minimize(lambda z: z.square().sum(), torch.ones(2), constraints=ti.Constraints(equal=lambda z: z[:0]))
