"""Anderson acceleration never does worse than the plain step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.norms import rms
from torchimplicit.problems.fixed_point import FixedPoint
from torchimplicit.solvers import Anderson, Equations

D = torch.float64


def mixture(seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randn(300, generator=draw, dtype=D), 1 + torch.randn(200, generator=draw, dtype=D)])


def expectation_maximisation(z: Tensor, x: Tensor) -> Tensor:
    """One step for a mixture of two normal distributions: z holds the logit of the first's share, and both means."""
    first = torch.sigmoid(z[..., :1]) * torch.exp(-((x - z[..., 1:2]) ** 2) / 2)
    second = torch.sigmoid(-z[..., :1]) * torch.exp(-((x - z[..., 2:]) ** 2) / 2)
    w = first / (first + second)
    means = (w * x).sum(-1) / w.sum(-1), ((1 - w) * x).sum(-1) / (1 - w).sum(-1)
    return torch.stack([torch.logit(w.mean(-1)), *means], dim=-1)


def test_a_slow_map_whose_mixed_steps_leave_its_domain_is_solved() -> None:
    x = mixture()
    start = torch.tensor([0.0, -0.5, 1.5], dtype=D)
    z, info = ti.fixed_point(expectation_maximisation, start, (x,), rtol=1e-9)
    plain, slow = ti.fixed_point(expectation_maximisation, start, (x,), solver="picard", rtol=1e-12, max_steps=5000)
    assert info.converged
    torch.testing.assert_close(z, plain, rtol=1e-5, atol=1e-6)
    assert info.evaluations < slow.evaluations / 10


def test_no_step_leaves_a_larger_residual_than_before_unless_the_plain_one_does() -> None:
    x = torch.stack([mixture(seed) for seed in range(6)])
    equations = Equations(lambda z: expectation_maximisation(z, x), FixedPoint())
    solver = Anderson()
    with torch.no_grad():
        z = torch.tensor([0.0, -0.5, 1.5], dtype=D).repeat(6, 1)
        r, state = solver.init(equations, z)
        for _ in range(40):
            plain = rms(equations.residual(z - r))
            before, size = rms(r), rms(z)
            z, r, state = solver.step(equations, z, r, state)
            assert (rms(r) <= torch.maximum(before, plain).maximum(1e-11 * size)).all()


def test_a_system_that_falls_back_does_not_change_its_neighbours() -> None:
    x = torch.stack([mixture(seed) for seed in range(4)])
    start = torch.tensor([0.0, -0.5, 1.5], dtype=D)
    together, info = ti.fixed_point(
        expectation_maximisation, start.repeat(4, 1), (x,), batch_ndim=1, rtol=1e-8, solver="anderson"
    )
    for i in range(4):
        alone, single = ti.fixed_point(expectation_maximisation, start, (x[i],), rtol=1e-8, solver="anderson")
        assert info.status[i] == single.status
        assert abs(int(info.steps[i]) - int(single.steps)) <= 1
        torch.testing.assert_close(together[i], alone, rtol=1e-6, atol=1e-7)


def slow(n: int, sign: float = 1.0) -> tuple[Tensor, Tensor]:
    """A symmetric matrix of norm 0.97 (or a negative one of norm 3), and an argument for three systems."""
    draw = torch.Generator().manual_seed(1)
    S = torch.randn(n, n, generator=draw, dtype=D)
    S = S + S.T if sign > 0 else -S @ S.T
    return S * (0.97 if sign > 0 else 3.0) / torch.linalg.matrix_norm(S, 2), torch.randn(3, n, generator=draw, dtype=D)


def evaluations(S: Tensor, x: Tensor, solver: Anderson) -> int:
    info = ti.fixed_point(
        lambda z: torch.tanh(z @ S + 0.1 * x), torch.zeros_like(x), solver=solver, batch_ndim=1, rtol=1e-8
    ).info
    assert info.converged.all()
    return int(info.evaluations)


def test_mixing_at_every_third_step_takes_fewer_evaluations_than_at_every_step() -> None:
    S, x = slow(200)
    assert evaluations(S, x, Anderson()) < 0.9 * evaluations(S, x, Anderson(period=1))


def test_few_unknowns_mix_at_every_step_and_converge_like_a_secant_method() -> None:
    x = torch.tensor([[0.5], [1.0]], dtype=D)
    z, info = ti.fixed_point(lambda z: x * z.cos(), torch.zeros_like(x), solver="anderson", batch_ndim=1, rtol=1e-12)
    assert (z - x * z.cos()).abs().max() < 1e-12
    assert info.evaluations <= 9
    assert evaluations(*slow(5), Anderson(period=4)) == evaluations(*slow(5), Anderson(period=1))


def test_where_plain_steps_lead_away_every_step_mixes() -> None:
    S, x = slow(200, -1.0)
    assert evaluations(S, x, Anderson()) <= evaluations(S, x, Anderson(period=1)) + 3


def test_a_system_that_mixes_at_every_step_does_not_make_its_neighbours_do_so() -> None:
    contracting, x = slow(200)
    expanding, _ = slow(200, -1.0)
    S = torch.stack([contracting, expanding, contracting])

    def f(z: Tensor, S: Tensor, x: Tensor) -> Tensor:
        return torch.tanh((z.unsqueeze(-2) @ S).squeeze(-2) + 0.1 * x)

    z, info = ti.fixed_point(f, torch.zeros_like(x), (S, x), solver="anderson", batch_ndim=1, rtol=1e-8)
    for i in range(3):
        alone, single = ti.fixed_point(f, torch.zeros_like(x[i]), (S[i], x[i]), solver="anderson", rtol=1e-8)
        assert info.steps[i] == single.steps
        torch.testing.assert_close(z[i], alone, rtol=1e-6, atol=1e-7)


def test_unrolled_through_mixtures_gives_the_implicit_gradient() -> None:
    S, x = slow(20)
    x.requires_grad_()

    def gradient(adjoint: ti.adjoints.Adjoint) -> Tensor:
        z = ti.fixed_point(
            lambda z: torch.tanh(z @ S + 0.1 * x),
            torch.zeros_like(x),
            solver="anderson",
            adjoint=adjoint,
            batch_ndim=1,
            rtol=1e-13,
        ).value
        (grad,) = torch.autograd.grad(z.sin().sum(), x)
        return grad

    torch.testing.assert_close(gradient(ti.Unrolled()), gradient(ti.Implicit()), rtol=1e-6, atol=1e-7)


def test_under_vmap_each_system_is_mixed_as_it_is_alone() -> None:
    S, x = slow(20)

    def solve(x: Tensor) -> Tensor:
        return ti.fixed_point(
            lambda z: torch.tanh(z @ S + 0.1 * x), torch.zeros_like(x), solver="anderson", rtol=1e-9, max_steps=60
        ).value

    torch.testing.assert_close(torch.vmap(solve)(x), torch.stack([solve(row) for row in x]), rtol=1e-8, atol=1e-9)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("seed", range(3))
def test_a_system_takes_the_steps_that_it_takes_alone(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    W, b = (torch.randn(k, 8, dtype=torch.float64, generator=generator) for k in (8, 30))

    def steps(b: Tensor) -> list[int]:
        info = ti.fixed_point(
            lambda z: 1.1 * torch.tanh(z @ W / 2) + b,
            torch.zeros_like(b),
            batch_ndim=1,
            solver="anderson",
            on_failure="ignore",
        ).info
        return [int(k) for k in info.steps]

    assert steps(b) == [steps(row)[0] for row in b.split(1)]
