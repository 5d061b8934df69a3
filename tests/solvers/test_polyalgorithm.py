"""Several methods in turn: nothing is paid where the first succeeds, and every system is solved by whichever can."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit import Status
from torchimplicit.condition import Kind
from torchimplicit.layout import Layout
from torchimplicit.solvers import Anderson, Dogleg, Newton, Picard, Polyalgorithm, PseudoTransient, choose

D = torch.float64
ROOT = -1.7692923542386314  # of z³ − 2z + 2
OTHER = -1.6512755483029526  # of z³ − 2z + 1.2
DENSE = ("Newton", "Dogleg", "PseudoTransient", "PseudoTransient")
STAGES = choose(Kind(), Layout.of(torch.zeros(2), 0))  # of the automatic choice for several unknowns


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=D)


def mixed(z: Tensor, p: Tensor) -> Tensor:
    """Scalar equations, one a row: easy, too far for Newton, a cycle, a flow that leads away from the root, and no root."""
    x = z.squeeze(-1)
    rows = [x**3 + x - 2, torch.atan(x), x**3 - 2 * x + 2, -(x**3) + 2 * x - 1.2, x**2 + 1]
    return torch.stack([row[i] for i, row in enumerate(rows)]).unsqueeze(-1) + p


START = tensor(0.5, 5.0, 0.0, 1.0, 0.3).unsqueeze(-1)
P = torch.zeros(5, 1, dtype=D)


def test_each_system_is_solved_by_the_first_method_that_can() -> None:
    z, info = ti.root(mixed, START, (P,), solver=STAGES, batch_ndim=1, on_failure="ignore")
    assert info.tried == DENSE
    assert info.solved_by is not None
    assert info.solved_by.tolist() == [0, 1, 2, 3, -1]
    assert torch.allclose(z[:4, 0], tensor(1, 0, ROOT, OTHER), atol=1e-7)
    assert info.status.tolist() == [Status.CONVERGED] * 4 + [Status.LOCAL_MINIMUM]
    assert info.steps.tolist() == sorted(info.steps.tolist())


def test_one_equation_in_one_unknown_is_solved_wherever_a_bracket_is_found() -> None:
    z, info = ti.root(mixed, START, (P,), batch_ndim=1, on_failure="ignore")
    assert info.tried == ("Newton", "Chandrupatla", "Dogleg")
    assert info.solved_by is not None
    assert info.solved_by.tolist() == [0, 1, 1, 1, -1]
    assert torch.allclose(z[:4, 0], tensor(1, 0, ROOT, OTHER), atol=1e-7)


def test_where_the_first_method_solves_all_nothing_else_is_evaluated() -> None:
    A = torch.randn(3, 4, 4, dtype=D, generator=torch.Generator().manual_seed(0))

    def g(z: Tensor) -> Tensor:
        return z + 0.01 * (A @ z.unsqueeze(-1)).squeeze(-1) ** 3 - 1

    (z, info), (plain, its) = (
        ti.root(g, torch.zeros(3, 4, dtype=D), solver=s, batch_ndim=1) for s in ("auto", "newton")
    )
    assert torch.equal(z, plain)
    assert (info.evaluations, info.products) == (its.evaluations, its.products)
    assert info.tried == ("Newton",)
    assert its.tried == ()


@pytest.mark.parametrize("raises", [False, True])
def test_what_the_first_method_cannot_bear_is_left_to_the_next(raises: bool) -> None:
    def g(z: Tensor) -> Tensor:
        if raises and bool((z <= 0).any()):
            raise ValueError("log of a negative number")
        return z.log()

    z, info = ti.root(g, tensor(30.0, 1.1), batch_ndim=1)
    assert torch.allclose(z, tensor(1, 1))
    assert info.solved_by is not None
    assert info.solved_by.tolist() == [1, 1 if raises else 0]


def test_what_the_function_raised_is_shown_where_no_method_helps() -> None:
    def g(z: Tensor) -> Tensor:
        if bool(z != 2):
            raise ArithmeticError("only defined at 2")
        return z

    with pytest.warns(ti.ConvergenceWarning, match="ArithmeticError: only defined at 2"):
        ti.root(g, torch.tensor(2.0, dtype=D))


def test_rows_that_are_known_are_gathered_and_the_others_cost_nothing_more() -> None:
    start = torch.cat([torch.full((99,), 0.5, dtype=D), tensor(5.0)])
    p = torch.zeros_like(start)
    rows: list[int] = []

    def g(z: Tensor, p: Tensor) -> Tensor:
        rows.append(len(z))
        return torch.atan(z) - p

    (z, info), (same, its) = (ti.root(g, start, (p,), batch_ndim=1, batched=batched) for batched in (None, (True,)))
    assert torch.equal(z, same)
    assert torch.equal(info.steps, its.steps)
    assert info.solved_by is not None
    assert its.solved_by is not None
    assert torch.equal(info.solved_by, its.solved_by)
    assert rows.count(1) > 5
    assert its.evaluations < info.evaluations


def test_the_step_limit_is_that_of_all_stages_together() -> None:
    info = ti.root(mixed, START, (P,), batch_ndim=1, on_failure="ignore", max_steps=25).info
    assert (info.steps <= 25).all()
    assert info.status[-1] != Status.CONVERGED
    assert ti.root(torch.atan, tensor(5.0), max_steps=3, on_failure="ignore").info.steps == 3


def test_the_trace_and_the_callback_go_on_from_stage_to_stage() -> None:
    seen: list[int] = []
    info = ti.root(
        mixed,
        START,
        (P,),
        batch_ndim=1,
        on_failure="ignore",
        trace=True,
        callback=lambda k, z, r: seen.append(k),
    ).info
    assert info.trace is not None
    assert seen == list(range(len(info.trace)))
    assert torch.equal(info.trace[-1, :4] <= 1e-7, torch.ones(4, dtype=torch.bool))


def test_gradients_of_all_rows_whatever_solved_them() -> None:
    def solve(p: Tensor) -> Tensor:
        return ti.root(mixed, START, (p,), batch_ndim=1, on_failure="ignore", rtol=1e-12).value[:4]

    p = P.clone().requires_grad_()
    (grad,) = torch.autograd.grad(solve(p).sum(), p)
    slopes = tensor(4, 1, 3 * ROOT**2 - 2, 2 - 3 * OTHER**2)
    torch.testing.assert_close(grad[:4, 0], -1 / slopes, rtol=1e-9, atol=0)


def test_under_transforms_rows_are_solved_as_without() -> None:
    def solve(z0: Tensor, p: Tensor) -> Tensor:
        return ti.root(lambda z: z**3 - 2 * z + 2 + p, z0, rtol=1e-12).value

    z0, p = tensor(0.0, 2.0, -3.0), tensor(0.0, 0.1, 0.2)
    grads = torch.vmap(torch.func.grad(solve, argnums=1))(z0, p)
    z = torch.stack([solve(a, b) for a, b in zip(z0, p)])
    torch.testing.assert_close(grads, -1 / (3 * z**2 - 2), rtol=1e-9, atol=0)


def test_unrolled_is_the_first_stage() -> None:
    x = tensor(2.0).requires_grad_()
    z, info = ti.root(lambda z: z**3 + z - x, tensor(1.0), adjoint=ti.Unrolled())
    (grad,) = torch.autograd.grad(z, x)
    plain = ti.root(lambda z: z**3 + z - x, tensor(1.0), solver="newton", adjoint=ti.Unrolled())
    assert torch.equal(z, plain.value)
    assert info.evaluations == plain.info.evaluations
    torch.testing.assert_close(grad, 1 / (3 * z.detach() ** 2 + 1))


def test_without_dense_jacobians_a_line_search_comes_second() -> None:
    start = torch.full((300,), 5.0, dtype=D)
    z, info = ti.root(lambda z: torch.atan(z) + 0.1 * torch.atan(z.roll(1)), start)
    assert info.tried == ("NewtonKrylov", "NewtonKrylov")
    assert info.solved_by == 1
    assert torch.allclose(z, torch.zeros_like(z), atol=1e-6)


def test_stages_of_ones_own() -> None:
    own = Polyalgorithm((Picard(), Anderson(), PseudoTransient()))
    z, info = ti.root(lambda z: z**3 - 2 * z + 2, tensor(0.0), solver=own)
    assert abs(z - ROOT) < 1e-7
    assert info.tried == ("Picard", "Anderson", "PseudoTransient")[: len(info.tried)]
    with pytest.raises(ValueError, match="at least one"):
        Polyalgorithm(())


def test_a_start_without_a_value_is_not_tried_again() -> None:
    info = ti.root(lambda z: z.log(), tensor(-1.0), on_failure="ignore").info
    assert info.tried == ("Newton",)
    assert info.status == Status.NONFINITE


def test_a_stochastic_function_is_not_tried_again() -> None:
    info = ti.root(lambda z: z + torch.rand_like(z), tensor(-1.0), on_failure="ignore").info
    assert info.tried == ("Newton",)
    assert info.status == Status.STOCHASTIC


@pytest.mark.parametrize("solver", [Newton(), Dogleg(), "auto"])
def test_a_local_minimum_of_the_norm_is_called_so(solver: object) -> None:
    def g(z: Tensor) -> Tensor:  # the circles |z| = 1 and |z − (3, 0)| = 1 do not meet
        return torch.stack([z.square().sum() - 1, (z - tensor(3, 0)).square().sum() - 1])

    info = ti.root(g, tensor(1.4, 0.2), solver=solver, on_failure="ignore").info
    if isinstance(solver, Newton):
        assert info.status != Status.CONVERGED
    else:
        assert info.status == Status.LOCAL_MINIMUM
        assert "local minimum" in info.message
