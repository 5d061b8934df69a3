"""Derivatives of quadratic programs in all of their data: differences, the written-out linear system, and every transform."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import torchimplicit as ti
from tests.programs.random_programs import D, known, times
from torchimplicit import ConvergenceWarning

EYE = torch.eye(2, dtype=D)


def tensor(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=D)


def all_of(*data: Tensor, **bounds: Tensor) -> tuple[Tensor, ...]:
    z, info = ti.quadratic_program(*data, **bounds)
    return (z, *(part for part in info.dual if part.shape[-1]))


def test_first_and_second_derivatives_of_solution_and_multipliers_are_those_of_differences() -> None:
    (Q, *others), *_ = known(2, 3, 4, 1, held=1)
    data = [t.requires_grad_() for t in (Q, *others)]
    assert gradcheck(all_of, data, fast_mode=True)
    assert gradgradcheck(lambda Q, *data: all_of((Q + Q.mT) / 2, *data), data, fast_mode=True)


@pytest.mark.slow
def test_every_entry_of_the_first_and_second_derivatives_is_that_of_differences() -> None:
    (Q, *others), *_ = known(1, 2, 2, 1, held=1)
    data = [t[0].requires_grad_() for t in (Q, *others)]
    assert gradcheck(all_of, data)
    assert gradgradcheck(lambda Q, *data: all_of((Q + Q.mT) / 2, *data), data)


def test_derivatives_in_bounds_are_those_of_differences() -> None:
    (Q, *_), *_ = known(2, 4, 0, 0, held=0)
    lower, upper = torch.full((4,), -0.3, dtype=D), torch.full((2, 4), 0.2, dtype=D)
    p = -times(Q, tensor([0.3, 0.1, -0.4, 0], [0, -0.4, 0.1, 0.3])) + tensor([-1, 0, 1, 0], [0, 1, 0, -1])
    data = [t.requires_grad_() for t in (Q, p, lower, upper)]

    def solved(Q: Tensor, p: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, ...]:
        return all_of(Q, p, lower=lower, upper=upper)

    held = solved(*data)[1]
    assert (held > 0).any()
    assert (held < 0).any()
    assert (held == 0).any()
    assert gradcheck(solved, data, fast_mode=True)
    assert gradgradcheck(lambda Q, *rest: solved((Q + Q.mT) / 2, *rest), data, fast_mode=True)


def test_gradients_are_those_of_the_written_out_linear_system() -> None:
    n, m, k, held = 12, 20, 3, 5
    known_one = known(1, n, m, k, held)
    data = [t[0].requires_grad_() for t in known_one.data]
    z, info = ti.quadratic_program(*data)
    v = torch.randn(n, dtype=D, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad(z, data, v)
    Q, _, G, _, A, _ = (t.detach() for t in data)
    C = torch.cat([G[:held], A])
    system = torch.cat([torch.cat([Q, C.mT], 1), torch.cat([C, torch.zeros(held + k, held + k, dtype=D)], 1)])
    u, on_held, on_equal = torch.linalg.solve(system, torch.cat([v, torch.zeros(held + k, dtype=D)])).split(
        [n, held, k]
    )
    z, inequality, equality = known_one.z[0], known_one.inequality[0], known_one.equality[0]
    all_held = torch.cat([on_held, torch.zeros(m - held, dtype=D)])
    wanted = (
        -(torch.outer(u, z) + torch.outer(z, u)) / 2,
        -u,
        -torch.outer(all_held, z) - torch.outer(inequality, u),
        all_held,
        -torch.outer(on_equal, z) - torch.outer(equality, u),
        on_equal,
    )
    for grad, expected in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-8, atol=1e-8)
    assert info.adjoint.converged


def test_every_transform_gives_the_same_derivatives() -> None:
    (Q, p, G, h, A, b), *_ = known(3, 4, 5, 1, held=2)

    def solved(p: Tensor, h: Tensor, Q: Tensor = Q[0]) -> Tensor:
        return ti.quadratic_program(Q, p, G[0], h, A[0], b[0]).value

    h = h[:1] + torch.rand(3, 5, dtype=D, generator=torch.Generator().manual_seed(2))
    one_by_one = [torch.autograd.functional.jacobian(solved, (p[i], h[i])) for i in range(3)]
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        by_p, by_h = torch.func.vmap(transform(solved, (0, 1)))(p, h)
        for i in range(3):
            torch.testing.assert_close((by_p[i], by_h[i]), one_by_one[i])
    torch.testing.assert_close(torch.func.vmap(solved)(p, h, Q), ti.quadratic_program(Q, p, G[0], h, A[0], b[0]).value)
    nested = torch.func.vmap(lambda Q: torch.func.vmap(lambda p: solved(p, h[0], Q))(p))(Q)
    torch.testing.assert_close(nested, ti.quadratic_program(Q[:, None], p, G[0], h[0], A[0], b[0]).value)

    def of_Q(Q: Tensor) -> Tensor:
        return solved(p[0], h[0], Q @ Q.mT + EYE.trace() * torch.eye(4, dtype=D)).square().sum()

    exact = torch.func.hessian(of_Q)(Q[0])
    eps, direction = 1e-5, torch.randn(4, 4, dtype=D, generator=torch.Generator().manual_seed(3))
    slopes = [torch.func.grad(of_Q)(Q[0] + sign * eps * direction) for sign in (1, -1)]
    torch.testing.assert_close(
        (exact * direction).sum((-2, -1)), (slopes[0] - slopes[1]) / (2 * eps), rtol=1e-6, atol=1e-7
    )


def test_failed_systems_do_not_reach_tensors_that_are_shared() -> None:
    Q = EYE.clone().requires_grad_()
    p = tensor([0.5, 2], [3, 4], [5, 6])
    with pytest.warns(ConvergenceWarning, match="primal_infeasible"):
        z, info = ti.quadratic_program(Q, p, tensor([1, 0], [-1, 0]), tensor([1, 1], [-1, -1], [1, 1]))
    z[info.converged].sum().backward()
    (alone,) = torch.autograd.grad(
        ti.quadratic_program(Q, p[[0, 2]], tensor([1, 0], [-1, 0]), tensor(1, 1)).value.sum(), Q
    )
    torch.testing.assert_close(Q.grad, alone)


def test_a_constraint_that_only_touches_makes_the_derivative_one_sided_and_is_reported() -> None:
    """The minimum of (z − a)²/2 over z ≤ 1 at a = 1: to the left z moves with a, to the right with the bound."""
    a = torch.ones(1, dtype=D, requires_grad=True)
    h = torch.ones(1, dtype=D, requires_grad=True)
    z, info = ti.quadratic_program(tensor([1]), -a, tensor([1]), h)
    assert info.converged
    assert not info.active.inequality
    with pytest.warns(ConvergenceWarning, match="degenerate.*the multiplier 0"):
        grads = torch.autograd.grad(z.sum(), (a, h))
    assert [float(grad) for grad in grads] == [1, 0]
    assert info.adjoint.status_names == "degenerate"


def test_a_vertex_with_more_constraints_than_unknowns_is_reported() -> None:
    h = torch.zeros(3, dtype=D, requires_grad=True)
    G = tensor([1, 0], [0, 1], [1, 1])
    z, _ = ti.quadratic_program(EYE, tensor(-3, -2), G, h)
    with pytest.warns(ConvergenceWarning, match="depend on each other"):
        z.sum().backward()


def test_a_solution_that_is_not_unique_has_no_derivative_and_that_is_reported() -> None:
    p = tensor(1, 1).requires_grad_()
    z, info = ti.quadratic_program(0 * EYE, p, A=tensor([1, 1]), b=tensor(1), lower=0.0)
    assert info.converged
    with pytest.warns(ConvergenceWarning, match="singular"):
        z[0].backward()


def test_equalities_that_follow_from_others_leave_the_derivatives_in_p_exact() -> None:
    A, b = tensor([1, 1, 1], [2, 2, 2], [1, -1, 0]), tensor(1, 2, 0)
    p = tensor(1, 2, 3).requires_grad_()
    Q = torch.diag(tensor(1, 2, 3))

    def reduced(p: Tensor) -> Tensor:
        return ti.quadratic_program(Q, p, A=A[::2], b=b[::2]).value

    found = torch.func.jacrev(lambda p: ti.quadratic_program(Q, p, A=A, b=b).value)(p)
    torch.testing.assert_close(found, torch.func.jacrev(reduced)(p))


def test_the_multipliers_are_the_derivatives_of_the_optimal_value() -> None:
    (Q, p, G, h, A, b), _, inequality, equality = known(4, 5, 8, 2, held=3)
    h.requires_grad_()
    b.requires_grad_()
    z, _ = ti.quadratic_program(Q, p, G, h, A, b)
    value = (z * times(Q, z) / 2 + p * z).sum()
    torch.testing.assert_close(torch.autograd.grad(value, (h, b)), (-inequality, -equality), rtol=1e-8, atol=1e-8)


def test_smoothing_gives_the_derivatives_of_the_barrier_problem_and_the_values_of_the_program() -> None:
    """The minimum of a z − μ log(z) − μ log(1 − z), at which a = μ/z − μ/(1 − z), moves by 1/(dz/da) = −μ/z² − μ/(1 − z)²."""
    a, mu = tensor(0.3).requires_grad_(), 0.1
    zero = torch.zeros(1, 1, dtype=D)
    z, info = ti.quadratic_program(zero, a, lower=0.0, upper=1.0, smoothing=mu)
    assert float(z) == pytest.approx(0, abs=1e-12)
    assert float(info.dual.bounds) == pytest.approx(-0.3)
    (grad,) = torch.autograd.grad(z.sum(), a, create_graph=True)
    inside = torch.tensor(0.5, dtype=D)
    for _ in range(50):
        off = mu / inside - mu / (1 - inside) - 0.3
        inside = inside + off / (mu / inside**2 + mu / (1 - inside) ** 2)
    slope = -mu / inside**2 - mu / (1 - inside) ** 2
    assert float(grad) == pytest.approx(float(1 / slope), rel=1e-8)
    (second,) = torch.autograd.grad(grad.sum(), a)
    bend = 2 * mu / inside**3 - 2 * mu / (1 - inside) ** 3
    assert float(second) == pytest.approx(float(-bend / slope**3), rel=1e-7)
    exact = ti.quadratic_program(zero, a, lower=0.0, upper=1.0).value
    assert float(torch.autograd.grad(exact.sum(), a)[0]) == pytest.approx(0, abs=1e-12)


def test_smoothed_derivatives_tend_to_the_exact_ones() -> None:
    (Q, p, G, h, A, b), *_ = known(3, 4, 6, 1, held=2)

    def gradients(mu: float | None) -> tuple[Tensor, ...]:
        data = [t.clone().requires_grad_() for t in (Q, p, G, h, A, b)]
        z, info = ti.quadratic_program(*data, smoothing=mu)
        return torch.autograd.grad(z.square().sum() + info.dual.inequality.sum(), data)

    exact = gradients(None)
    off = [
        max(float((a - b).abs().max()) for a, b in zip(exact, gradients(mu), strict=True)) for mu in (1e-3, 1e-5, 1e-7)
    ]
    assert off[2] < 1e-3
    assert off[2] < off[1] / 10 < off[0] / 100


def counted(info: Any) -> dict[str, int]:
    """How many systems have each status but CONVERGED."""
    return {name: n for name, n in Counter(info.status_names).items() if name != "converged"}


def told(caught: list[warnings.WarningMessage]) -> dict[str, int]:
    """The same, as one warning has it."""
    (message,) = [str(w.message) for w in caught if issubclass(w.category, ConvergenceWarning)]
    return {status: int(n) for n, status in re.findall(r"(\d+) of \d+ systems \([^)]*\): (\w+)", message)}


# Of the first and the third the second number costs less than nothing; of the fourth z lies at its bound without a force.
UNBOUNDED = tensor([1, -1], [1, 1], [2, -1], [0, 2])


def solve_quadratic(p: Tensor, how: Any) -> Any:
    return ti.quadratic_program(torch.diag(tensor(1, 0)), p, lower=0.0, on_failure=how)


def solve_conic(p: Tensor, how: Any) -> Any:
    return ti.cone_program(torch.diag(tensor(1, 0)), p, -EYE, tensor(0, 0), ti.Cones(nonnegative=2), on_failure=how)


@pytest.mark.parametrize("solve", [solve_quadratic, solve_conic])
def test_a_gradient_that_is_asked_of_what_has_no_solution_is_reported_and_counted_as_the_warning_counts(
    solve: Callable[[Tensor, Any], Any],
) -> None:
    if solve is solve_conic:
        pytest.importorskip("clarabel")
    p = UNBOUNDED.clone().requires_grad_()
    with warnings.catch_warnings(record=True) as forward:
        warnings.simplefilter("always")
        z, info = solve(p, "warn")
    assert counted(info) == told(forward) == {"dual_infeasible": 2}
    with warnings.catch_warnings(record=True) as backward:
        warnings.simplefilter("always")
        torch.autograd.grad(z.sum(), p)
    assert counted(info.adjoint) == told(backward)
    assert counted(info.adjoint)["nonfinite"] == 2
    z, info = solve(p, "nan")
    (grad,) = torch.autograd.grad(z[:3].sum(), p, retain_graph=True)
    assert grad.isnan().all(-1).tolist() == [True, False, True, False]
    (grad,) = torch.autograd.grad(z[1].sum(), p)
    assert not grad.isnan().any()
