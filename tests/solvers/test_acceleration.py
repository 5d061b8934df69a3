"""Anderson acceleration never does worse than the plain step."""

from __future__ import annotations

import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.problems.fixed_point import FixedPoint
from torchimplicit.solvers import Anderson, Equations
from torchimplicit.stopping import rms

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
