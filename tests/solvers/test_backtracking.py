"""Newton's method with backtracking: shorter steps where the full one is bad, and the full one, at no cost, where it is good."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit import Status
from torchimplicit.solvers import Backtracking, Newton

D = torch.float64
ARMIJO = Newton(line_search=Backtracking())
NONMONOTONE = Newton(line_search=Backtracking(memory=10))


def start(*values: float) -> Tensor:
    return torch.tensor(values, dtype=D)


def exact(z: Tensor, root: float) -> bool:
    return bool((z - root).abs().max() < 1e-9)


@pytest.mark.parametrize("solver", [ARMIJO, NONMONOTONE])
def test_the_arctangent_is_solved_from_afar_where_the_plain_method_diverges(solver: Newton) -> None:
    z, info = ti.root(torch.atan, start(5.0, -40.0, 0.3), solver=solver, batch_ndim=1, trace=True)
    assert exact(z, 0.0)
    plain = ti.root(torch.atan, start(5.0), solver="newton", on_failure="ignore").info
    assert not plain.converged
    if solver is ARMIJO:
        assert info.trace is not None
        assert (info.trace[1:] <= info.trace[:-1]).all()


@pytest.mark.parametrize("solver", [ARMIJO, NONMONOTONE])
def test_where_the_full_step_is_good_it_costs_no_more_than_the_plain_method(solver: Newton) -> None:
    def g(z: Tensor) -> Tensor:
        return z + 0.05 * z.roll(1, -1) ** 3 - torch.tensor([1.0, 2.0, 0.5], dtype=D)

    (z, info), (plain, its) = (ti.root(g, torch.zeros(3, dtype=D), solver=s, rtol=1e-13) for s in (solver, "newton"))
    assert torch.equal(z, plain)
    assert (info.evaluations, info.products, info.steps) == (its.evaluations, its.products, its.steps)


def test_a_trial_point_outside_the_domain_shortens_the_step_of_its_system_only() -> None:
    z0 = start(3.0, 0.9)  # the full step from 3 leads to 3 - 3 log 3 < 0
    z, info = ti.root(torch.log, z0, solver=ARMIJO, batch_ndim=1)
    alone = ti.root(torch.log, z0[1:], solver="newton", batch_ndim=1)
    assert exact(z, 1.0)
    assert z[1] == alone.value[0]
    assert info.steps[1] == alone.info.steps[0]


def test_overflow_shortens_the_step() -> None:
    z = ti.root(lambda z: z.exp() - 1, start(-9.0), solver=ARMIJO).value  # the full step leads to 8094
    assert exact(z, 0.0)


def test_a_function_that_raises_at_a_trial_point_shortens_the_step() -> None:
    def g(z: Tensor) -> Tensor:
        if bool((z <= 0).any()):
            raise ValueError("log of a negative number")
        return z.log()

    assert exact(ti.root(g, start(3.0), solver=ARMIJO).value, 1.0)
    with pytest.raises(ValueError, match="negative"):
        ti.root(g, start(3.0), solver="newton")
    with pytest.raises(ValueError, match="negative"):
        ti.root(g, start(-3.0), solver=ARMIJO)


def test_where_no_step_succeeds_what_the_function_raised_is_shown() -> None:
    def g(z: Tensor) -> Tensor:
        if bool((z != 2).any()):
            raise ArithmeticError("only defined at 2")
        return z

    with pytest.warns(ti.ConvergenceWarning, match="ArithmeticError: only defined at 2"):
        ti.root(g, start(2.0), solver=ARMIJO)


def test_errors_that_are_no_question_of_where_are_raised() -> None:
    calls = 0

    def g(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise TypeError("a mistake in the program")
        return z**3 - 1

    with pytest.raises(TypeError, match="mistake"):
        ti.root(g, start(2.0), solver=ARMIJO)


def test_a_search_that_finds_nothing_ends_and_is_cheap_from_then_on() -> None:
    def g(z: Tensor) -> Tensor:
        return 1 + z.detach().abs() + (z - z.detach())  # nowhere smaller than at 0, whatever its derivative says

    info = ti.root(g, start(0.0), solver=ARMIJO, on_failure="ignore").info
    assert info.status == Status.STAGNATED
    assert info.evaluations <= 22 + 10 + 2  # one long search, a trial at each further step, two looks at how it ended


def test_the_norm_may_rise_for_a_while_with_memory() -> None:
    def badly_scaled(z: Tensor) -> Tensor:  # Powell's
        a, b = z.unbind(-1)
        return torch.stack([1e4 * a * b - 1, torch.exp(-a) + torch.exp(-b) - 1.0001], dim=-1)

    infos = [
        ti.root(badly_scaled, start(0.0, 1.0), solver=solver, rtol=1e-10, on_failure="ignore").info
        for solver in (ARMIJO, NONMONOTONE)
    ]
    assert infos[1].converged
    assert infos[1].evaluations < infos[0].evaluations / 2


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_gradient_of_the_unrolled_steps_is_that_of_the_root(checkpoint: bool) -> None:
    x = start(0.2, 1.0).requires_grad_()
    z = ti.root(
        lambda z: torch.atan(z - x),
        start(5.0, -3.0),
        solver=ARMIJO,
        batch_ndim=1,
        adjoint=ti.Unrolled(None, checkpoint),
    ).value
    (grad,) = torch.autograd.grad(z.sum(), x)
    torch.testing.assert_close(grad, torch.ones_like(grad), rtol=1e-7, atol=0)
