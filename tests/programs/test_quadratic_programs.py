"""Quadratic programs: solutions and multipliers that are known, in batches of any kind, and what is said where there are none."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import optimize
from torch import Tensor

import torchimplicit as ti
from tests.problem_sets.maros_meszaros import PROBLEMS
from tests.programs.random_programs import D, known, times
from torchimplicit import ConvergenceWarning, Status

EYE = torch.eye(2, dtype=D)


def tensor(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=D)


@pytest.mark.parametrize(("n", "m", "k", "held"), [(1, 2, 0, 1), (4, 6, 2, 2), (12, 20, 3, 5), (30, 60, 10, 15)])
def test_solutions_and_multipliers_are_those_that_were_chosen(n: int, m: int, k: int, held: int) -> None:
    data, z, inequality, equality = known(20, n, m, k, held)
    solution = ti.quadratic_program(*data)
    assert solution.info.converged.all()
    torch.testing.assert_close(solution.value, z, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(solution.info.dual.inequality, inequality, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(solution.info.dual.equality, equality, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(solution.info.active.inequality, inequality > 0)


def test_a_semidefinite_program_is_solved_where_the_constraints_determine_it() -> None:
    data, z, *_ = known(20, 10, 20, 3, held=6, rank=4)
    torch.testing.assert_close(ti.quadratic_program(*data).value, z, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_optimum_is_that_of_the_table_and_the_conditions_are_met(name: str) -> None:
    data, constant, optimum = PROBLEMS[name]
    z, info = ti.quadratic_program(**data)
    assert info.converged
    assert float(z @ data["Q"] @ z / 2 + data["p"] @ z) + constant == pytest.approx(optimum, rel=1e-8, abs=1e-9)
    assert lacking(data, z, info.dual) <= 1e-8


def lacking(data: dict[str, Any], z: Tensor, dual: Any) -> float:
    """The largest number that is missing from the optimality conditions, in the units of the data."""
    none = z.new_zeros(0, len(z)), z.new_zeros(0)
    G, h = data.get("G", none[0]), data.get("h", none[1])
    A, b = data.get("A", none[0]), data.get("b", none[1])
    lower, upper = (
        torch.as_tensor(data.get(name, end)).expand_as(z) for name, end in (("lower", -math.inf), ("upper", math.inf))
    )
    mu = dual.bounds if len(dual.bounds) else torch.zeros_like(z)
    gradient = data["Q"] @ z + data["p"] + G.mT @ dual.inequality + A.mT @ dual.equality + mu
    slack = torch.minimum(h - G @ z, dual.inequality)
    at_bounds = torch.cat([(upper - z).minimum(mu.clamp(min=0)), (z - lower).minimum(-mu.clamp(max=0))])
    return max(float(part.abs().max()) for part in (gradient, slack, A @ z - b, at_bounds) if part.numel())


def test_a_vertex_that_rounding_moves_is_found() -> None:
    """The 30 constraints that hold the 30 unknowns have a condition of 1e5; rounded to single precision, others hold them."""
    (Q, p, G, h, A, b), *_ = known(4, 30, 60, 10, held=20, seed=67)
    single = [t[1].float() for t in (Q, p, G, h, A, b)]
    data = dict(zip(("Q", "p", "G", "h", "A", "b"), (t.double() for t in single), strict=True))
    z, info = ti.quadratic_program(**data)
    assert info.converged
    assert lacking(data, z, info.dual) <= 1e-8
    rounded, info = ti.quadratic_program(*single)
    assert info.converged
    torch.testing.assert_close(rounded, z.float(), rtol=1e-6, atol=1e-6)


def test_linear_programs_have_the_vertices_that_highs_finds() -> None:
    (_, p, G, h, _, _), *_ = known(8, 10, 30, 0, held=10, rank=1, seed=3)
    p = -times(G.mT, torch.rand(8, 30, dtype=D, generator=torch.Generator().manual_seed(0)))
    z, info = ti.quadratic_program(torch.zeros(10, 10, dtype=D), p, G, h)
    for i in range(8):
        found = optimize.linprog(p[i].numpy(), G[i].numpy(), h[i].numpy(), bounds=(None, None))
        torch.testing.assert_close(z[i], torch.as_tensor(found.x), rtol=1e-9, atol=1e-9)
        multipliers = torch.as_tensor(-found.ineqlin.marginals)
        torch.testing.assert_close(info.dual.inequality[i], multipliers, rtol=1e-9, atol=1e-9)


def test_bounds_are_the_same_as_inequalities_and_their_multipliers_have_the_sign_of_their_side() -> None:
    (Q, p, *_), *_ = known(10, 6, 0, 0, held=0)
    lower, upper = -torch.full((6,), 0.2, dtype=D), torch.full((6,), 0.1, dtype=D)
    lower[2], upper[3] = -math.inf, math.inf
    z, info = ti.quadratic_program(Q, p, lower=lower, upper=upper)
    eye = torch.eye(6, dtype=D)
    w, same = ti.quadratic_program(Q, p, torch.cat([eye, -eye]), torch.cat([upper, -lower]))
    torch.testing.assert_close(z, w, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(info.dual.bounds, same.dual.inequality[:, :6] - same.dual.inequality[:, 6:])
    assert (info.dual.bounds[z == lower] < 0).all()
    assert (info.dual.bounds[z == upper] > 0).all()
    torch.testing.assert_close(times(Q, z) + p + info.dual.bounds, torch.zeros(10, 6, dtype=D), rtol=0, atol=1e-12)


def test_the_sign_of_multipliers_is_that_of_the_lagrangian() -> None:
    """The minimum of (z − 3)²/2 over z ≤ 1 changes by −λ dh, that over z = 1 by −ν db, that over lower ≤ z by −μ d lower."""
    Q, p = tensor([1]), tensor(-3)
    assert float(ti.quadratic_program(Q, p, tensor([1]), tensor(1)).info.dual.inequality) == pytest.approx(2)
    assert float(ti.quadratic_program(Q, p, A=tensor([1]), b=tensor(1)).info.dual.equality) == pytest.approx(2)
    assert float(ti.quadratic_program(Q, p, upper=1.0).info.dual.bounds) == pytest.approx(2)
    assert float(ti.quadratic_program(Q, p, lower=4.0).info.dual.bounds) == pytest.approx(-1)


def test_equalities_that_follow_from_others_and_bounds_that_are_the_same_do_no_harm() -> None:
    A, b = tensor([1, 1, 1], [2, 2, 2], [1, -1, 0]), tensor(1, 2, 0)
    z, info = ti.quadratic_program(torch.eye(3, dtype=D), tensor(1, 2, 3), A=A, b=b)
    assert info.converged
    torch.testing.assert_close(z, tensor(5, 5, -4) / 6)
    z, info = ti.quadratic_program(EYE, tensor(1, 2), lower=tensor(-0.5, -9), upper=tensor(-0.5, 9))
    assert info.converged
    torch.testing.assert_close(z, tensor(-0.5, -2))
    torch.testing.assert_close(info.dual.bounds, tensor(-0.5, 0))


def test_each_system_of_a_batch_has_its_own_end() -> None:
    """Solved, contradictory, unbounded, degenerate, NaN, and with a constraint that is none."""
    nan, inf = math.nan, math.inf
    Q = torch.stack([EYE, EYE, 0 * EYE, EYE, EYE, EYE])
    p = tensor([-1, -1], [0, 0], [-1, -1], [-1, 0], [nan, 0], [-1, -1])
    G = torch.stack([tensor([1, 0], [0, 1], [-1, -1])] * 6)
    G[2] = tensor([1, -1], [-1, 0], [0, -1])
    h = tensor([0.5, 0.7, 3], [-1, -1, 1], [1, 0, 0], [1, 0.5, 3], [1, 1, 1], [inf, inf, 3])
    p.requires_grad_()
    with pytest.warns(ConvergenceWarning, match="primal_infeasible(.|\n)*dual_infeasible"):
        z, info = ti.quadratic_program(Q, p, G, h)
    solved, primal, dual, nonfinite = "converged", "primal_infeasible", "dual_infeasible", "nonfinite"
    assert info.status_names == [solved, primal, dual, solved, nonfinite, solved]
    torch.testing.assert_close(z[[0, 3, 5]], tensor([0.5, 0.7], [1, 0], [1, 1]))
    for part in (z, info.dual.inequality):
        assert part[[1, 2, 4]].isnan().all()
        assert not part[[0, 3, 5]].isnan().any()
    y, x = info.certificate.inequality[1], info.certificate.z[2]
    assert (y >= 0).all()
    torch.testing.assert_close(times(G[1].mT, y), tensor(0, 0), rtol=0, atol=1e-6)
    torch.testing.assert_close(h[1] @ y, tensor(-1)[0])
    assert (times(G[2], x) <= 1e-6).all()
    torch.testing.assert_close(p.detach()[2] @ x, tensor(-1)[0])
    assert info.certificate.z[1].isnan().all()
    assert info.certificate.inequality[0].isnan().all()
    with pytest.warns(ConvergenceWarning, match="degenerate"):
        (grad,) = torch.autograd.grad(z[info.converged].sum(), p)
    assert info.adjoint.status_names == [solved, solved, solved, "degenerate", solved, solved]
    torch.testing.assert_close(grad[[0, 5]], tensor([0, 0], [-1, -1]))
    assert not grad.isnan().any()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("seed", range(4))
def test_contradictions_and_unbounded_programs_are_proved(seed: int) -> None:
    (Q, p, G, h, A, b), *_ = known(16, 8, 20, 2, held=4, seed=seed)
    with pytest.warns(ConvergenceWarning):
        _, info = ti.quadratic_program(Q, p, torch.cat([G, -G[:, :1]], 1), torch.cat([h, -h[:, :1] - 0.1], 1), A, b)
    assert (info.status == Status.PRIMAL_INFEASIBLE).all()
    _, inequality, equality, *_ = info.certificate
    combined = times(G.mT, inequality[:, :-1]) - times(G[:, :1].mT, inequality[:, -1:]) + times(A.mT, equality)
    torch.testing.assert_close(combined, torch.zeros(16, 8, dtype=D), rtol=0, atol=1e-6)
    with pytest.warns(ConvergenceWarning):
        _, info = ti.quadratic_program(torch.zeros_like(Q), p, G[:, :5], h[:, :5], A, b)
    assert (info.status == Status.DUAL_INFEASIBLE).all()
    x = info.certificate.z
    assert float(times(G[:, :5], x).max()) <= 1e-6
    torch.testing.assert_close(times(A, x), torch.zeros(16, 2, dtype=D), rtol=0, atol=1e-6)
    torch.testing.assert_close((p * x).sum(-1), -torch.ones(16, dtype=D))


def test_contradictory_bounds_are_proved() -> None:
    with pytest.warns(ConvergenceWarning, match="0 <= -1"):
        z, info = ti.quadratic_program(EYE, tensor(1, 2), lower=tensor(1, 0), upper=tensor(-1, 1))
    assert z.isnan().all()
    lower, upper = info.certificate.lower, info.certificate.upper
    torch.testing.assert_close(upper, lower, rtol=0, atol=1e-6)
    torch.testing.assert_close(upper @ tensor(-1, 1) - lower @ tensor(1, 0), tensor(-1)[0])


def test_an_objective_that_is_not_convex_is_reported() -> None:
    with pytest.warns(ConvergenceWarning, match="negative eigenvalue"):
        _, info = ti.quadratic_program(torch.diag(tensor(1, -1)), tensor(1, 2), lower=-1.0, upper=1.0)
    assert info.status == Status.NONCONVEX
    z, info = ti.quadratic_program(torch.diag(tensor(1, -1)), tensor(1, 2), A=tensor([0, 1]), b=tensor(3))
    assert info.converged  # the equality leaves only the convex direction free
    torch.testing.assert_close(z, tensor(-1, 3))


@pytest.mark.parametrize("constraints", [{}, {"lower": 0.0}, {"G": -EYE, "h": tensor(0, 0)}])
def test_linear_programs_with_no_number_but_0_are_proved_unbounded(constraints: dict[str, Any]) -> None:
    with pytest.warns(ConvergenceWarning, match="dual_infeasible"):
        _, info = ti.quadratic_program(0 * EYE, tensor(-1, -1), **constraints)
    torch.testing.assert_close(info.certificate.z, tensor(0.5, 0.5))


def test_without_constraints_each_system_of_a_batch_is_solved_or_refused() -> None:
    with pytest.warns(ConvergenceWarning, match="negative eigenvalue"):
        z, info = ti.quadratic_program(torch.stack([EYE, -EYE, torch.diag(tensor(1, 0))]), tensor(1, 0))
    assert info.status_names == ["converged", "nonconvex", "converged"]
    torch.testing.assert_close(z[::2], tensor([-1, 0], [-1, 0]))
    assert z[1].isnan().all()


@pytest.mark.parametrize("far", [1e20, 1e30])
def test_bounds_that_stand_for_infinity_are_none(far: float) -> None:
    for constraints in ({"lower": -far, "upper": far}, {"G": -EYE, "h": tensor(-1, far)}):
        z, info = ti.quadratic_program(EYE, tensor(1, 2), **constraints)
        assert info.converged
        torch.testing.assert_close(z, tensor(1 if "G" in constraints else -1, -2))


@pytest.mark.parametrize(
    "constraints", [{"lower": math.inf}, {"upper": -math.inf}, {"A": EYE, "b": tensor(math.inf, 0)}]
)
def test_infinite_bounds_that_leave_no_room_are_no_data(constraints: dict[str, Any]) -> None:
    with pytest.warns(ConvergenceWarning, match="nonfinite"):
        ti.quadratic_program(EYE, tensor(1, 2), **constraints)


def test_a_solution_of_0_is_one() -> None:
    """What is left of it is rounding, beside the ends of the other constraints."""
    z, info = ti.quadratic_program(tensor([0]), tensor(2), tensor([-1], [2], [-1], [2]), tensor(0, 2, 1, 4), lower=-2.0)
    assert info.converged
    torch.testing.assert_close(z, tensor(0))
    z, info = ti.quadratic_program(EYE, tensor(0, 0), tensor([1, 2], [3, 1]), tensor(1, 1))
    assert info.converged
    torch.testing.assert_close(z, tensor(0, 0))


def test_no_number_of_z_hides_behind_a_larger_one() -> None:
    """A bound so far away that it is not found: 1e10 is no minimum of −z₂ within z₂ ≤ 1e12."""
    with pytest.warns(ConvergenceWarning, match="stagnated"):
        ti.quadratic_program(torch.diag(tensor(1, 0)), tensor(1, -1), lower=-1e12, upper=1e12)


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1e4, 1e8])
def test_no_unit_of_the_data_matters(scale: float) -> None:
    (Q, p, G, h, A, b), z, *_ = known(5, 6, 10, 2, held=3)
    for data, solution in (
        ((scale * Q, scale * p, G, h, A, b), z),
        ((Q, p, scale * G, scale * h, A / scale, b / scale), z),
        ((Q, scale * p, G, scale * h, A, scale * b), scale * z),
    ):
        found, info = ti.quadratic_program(*data)
        assert info.converged.all()
        torch.testing.assert_close(
            found / scale, solution / scale, rtol=1e-8, atol=1e-8 * float(solution.abs().max()) / scale
        )


def test_data_broadcast_over_the_batch_and_float32_is_returned_as_it_came() -> None:
    (Q, p, G, h, A, b), *_ = known(3, 4, 5, 1, held=2)
    many = ti.quadratic_program(Q[0], p.reshape(3, 1, 4), G[0], h[:1] + torch.arange(2.0, dtype=D)[:, None], A[0], b[0])
    assert many.value.shape == (3, 2, 4)
    assert many.info.status.shape == (3, 2)
    one = ti.quadratic_program(Q[0], p[1], G[0], h[0] + 1, A[0], b[0])
    torch.testing.assert_close(many.value[1, 1], one.value)
    single = ti.quadratic_program(*(t.float() for t in (Q, p, G, h, A, b)))
    assert single.value.dtype == torch.float32
    assert single.info.converged.all()
    torch.testing.assert_close(
        single.value.double(), ti.quadratic_program(Q, p, G, h, A, b).value, rtol=1e-4, atol=1e-4
    )


def test_no_constraints_and_no_systems() -> None:
    z, _ = ti.quadratic_program(EYE, tensor(1, 2))
    torch.testing.assert_close(z, tensor(-1, -2))
    assert ti.quadratic_program(EYE.expand(0, 2, 2), torch.zeros(0, 2, dtype=D)).value.shape == (0, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"Q": torch.eye(3, dtype=D)}, r"Q must have shape \(..., 2, 2\)"),
        ({"G": EYE}, "G was given without h"),
        ({"b": tensor(1)}, "b was given without A"),
        ({"G": EYE, "h": tensor(1, 2, 3)}, r"G must have shape \(..., 3, 2\)"),
        ({"G": EYE.float(), "h": tensor(1, 2)}, "one dtype and one device"),
        ({"Q": EYE.to_sparse()}, "Q must be a dense tensor"),
        ({"Q": EYE.expand(3, 2, 2), "p": torch.zeros(2, 2, dtype=D)}, "do not broadcast: Q"),
        ({"batch_ndim": 1}, "batch_ndim=1, but the data have 0"),
        ({"adjoint": ti.Unrolled()}, "no derivative"),
        ({"Q": torch.zeros(0, 0, dtype=D), "p": torch.zeros(0, dtype=D)}, "at least one unknown"),
    ],
)
def test_what_does_not_fit_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        ti.quadratic_program(**{"Q": EYE, "p": tensor(1, 2), **arguments})


def test_the_step_limit_holds_for_all_accuracies_together() -> None:
    torch.manual_seed(0)
    L, p, G = torch.randn(20, 20, dtype=D), torch.randn(20, dtype=D), torch.randn(60, 20, dtype=D)
    h = G @ torch.randn(20, dtype=D) + torch.rand(60, dtype=D)
    _, info = ti.quadratic_program(L @ L.T, p, G, h, max_steps=1, on_failure="ignore")
    assert info.status == Status.MAX_STEPS
    assert info.steps == 1


def test_many_bounds_and_equalities_leave_few_unknowns_free_and_small() -> None:
    """Of 64 unknowns 24 are 0, with clear multipliers, 36 equalities hold all others but 4, and the least of those are near 0."""
    torch.manual_seed(0)
    batch, n, k, held = 100, 64, 36, 24
    A = torch.rand(batch, k, n, dtype=D)
    z = torch.where(torch.arange(n) < held, 0, 10 ** (-6 * torch.rand(batch, n, dtype=D)))
    force = torch.where(torch.arange(n) < held, 0.03 + torch.rand(batch, n, dtype=D), 0)
    p = force - 0.1 * z - times(A.mT, torch.randn(batch, k, dtype=D))
    found, info = ti.quadratic_program(0.1 * torch.eye(n, dtype=D), p, A=A, b=times(A, z), lower=0.0)
    assert info.converged.all()
    torch.testing.assert_close(found, z, rtol=0, atol=1e-9)
    torch.testing.assert_close(info.dual.bounds, -force, rtol=0, atol=1e-8)


def test_the_error_of_a_point_that_is_no_solution_is_not_told_as_small() -> None:
    torch.manual_seed(0)
    L, p, G = torch.randn(20, 20, dtype=D), torch.randn(20, dtype=D), torch.randn(60, 20, dtype=D)
    h = G @ torch.randn(20, dtype=D) + torch.rand(60, dtype=D)
    _, info = ti.quadratic_program(L @ L.T, p, G, h, max_steps=1, on_failure="ignore")
    assert not info.converged
    assert float(info.error) == float("inf")


def test_a_start_spares_the_interior_point_and_changes_nothing_but_the_steps() -> None:
    data, *_ = known(6, 20, 15, 4, held=5)
    Q, p, G, h, A, b = (t.reshape(2, 3, *t.shape[1:]) for t in data)
    box = {"lower": data[0].new_full((20,), -4.0), "upper": data[0].new_full((20,), 4.0)}
    first = ti.quadratic_program(Q, p, G, h, A, b, **box)
    generator = torch.Generator().manual_seed(1)
    for nearness in (0.0, 1e-3, 0.3, 30.0):  # from the same constraints that hold z to entirely different ones
        moved = (p + nearness * torch.randn(p.shape, generator=generator, dtype=D)).requires_grad_()
        anew = ti.quadratic_program(Q, moved, G, h, A, b, **box)
        warm = ti.quadratic_program(Q, moved, G, h, A, b, **box, start=first)
        assert warm.info.converged.all()
        torch.testing.assert_close(warm.value, anew.value)
        gradients = [torch.autograd.grad(z.square().sum(), moved)[0] for z in (warm.value, anew.value)]
        torch.testing.assert_close(*gradients)
        if nearness < 0.1:
            assert (warm.info.steps == 1).all()
            assert (anew.info.steps > 3).all()


def test_a_start_broadcasts_serves_under_vmap_and_of_a_failure_is_none() -> None:
    Q, p = torch.eye(3, dtype=D), torch.tensor([[-1.0, 0.5, 2.0], [3.0, 1.0, -2.0]], dtype=D)
    truth = (-p).clamp(min=0)
    unbounded = ti.quadratic_program(0 * Q, -p[0].abs(), lower=0.0, on_failure="ignore")
    assert unbounded.value.isnan().all()
    for start in (ti.quadratic_program(Q, p[0], lower=0.0), unbounded):
        torch.testing.assert_close(ti.quadratic_program(Q, p, lower=0.0, start=start).value, truth)
        each = torch.vmap(lambda p, start=start: ti.quadratic_program(Q, p, lower=0.0, start=start).value)(p)
        torch.testing.assert_close(each, truth)


@pytest.mark.parametrize("of", ["a tensor", "a root", "another size"])
def test_a_start_that_is_none_is_refused(of: str) -> None:
    p = torch.ones(3, dtype=D)
    start, error, message = {
        "a tensor": (p, TypeError, "start must be what ti.quadratic_program has returned"),
        "a root": (ti.root(lambda z: z - 1, p), TypeError, "start must be what ti.quadratic_program has returned"),
        "another size": (ti.quadratic_program(torch.eye(2, dtype=D), p[:2]), ValueError, r"its z has shape \(2,\)"),
    }[of]
    with pytest.raises(error, match=message):
        ti.quadratic_program(torch.eye(3, dtype=D), p, start=start)


def test_a_curvature_counts_as_none_by_its_size_beside_the_others() -> None:
    """Along (1, 1) that of Q is c: a minimum at −p/c. Of one unknown alone any is found, for it has a unit of its own."""
    U, ones = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=D) / 2**0.5, torch.ones(2, dtype=D)

    def solved(c: float) -> ti.Solution:
        return ti.quadratic_program(U @ torch.diag(torch.tensor([c, 1.0], dtype=D)) @ U.T, ones, on_failure="ignore")

    z, info = solved(1e-6)
    assert info.converged
    torch.testing.assert_close(z, -ones / 1e-6, rtol=1e-8, atol=0)
    z, info = solved(1e-9)
    assert info.status == Status.DUAL_INFEASIBLE
    assert z.isnan().all()
    direction = info.certificate.z
    torch.testing.assert_close(direction, -ones / 2)
    z, info = ti.quadratic_program(torch.diag(torch.tensor([1e-9, 1.0], dtype=D)), ones)
    assert info.converged
    torch.testing.assert_close(z, torch.tensor([-1e9, -1.0], dtype=D))
