"""The first guess at a quadratic program: which constraints hold the solution, and none where there is no solution; and batches."""

from __future__ import annotations

import pytest
import torch

import torchimplicit as ti
from torchimplicit.programs.first_guess import guess
from torchimplicit.programs.quadratic import Data, scaled
from torchimplicit.status import Status

D = torch.float64
NONES = torch.zeros(64, 0, 12, dtype=D), torch.zeros(64, 0, dtype=D)  # no equalities


def made(held: int) -> tuple[Data, torch.Tensor]:
    """64 programs, and their solutions z: so many of 15 inequalities hold z, all are decided by 0.1 or more."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(64, *shape, dtype=D, generator=generator)

    L, G, A, z = random(12, 12), random(15, 12), random(3, 12), random(12, 1)
    Q = L @ L.mT / 12 + 0.1 * torch.eye(12, dtype=D)
    size, holds = 0.1 + random(15, 1).abs(), (torch.arange(15) < held).unsqueeze(-1)
    p = -(Q @ z + G.mT @ torch.where(holds, size, 0) + A.mT @ random(3, 1))
    h = G @ z + torch.where(holds, 0, size)
    return Data(Q, p.squeeze(-1), G, h.squeeze(-1), A, (A @ z).squeeze(-1), None, None), z.squeeze(-1)


def test_it_tells_the_constraints_that_hold_a_solution_in_a_few_steps() -> None:
    data, _ = made(held=5)
    point, ended, steps = guess(scaled(data)[0].one_sided(0), 100)
    assert (ended == Status.CONVERGED).all()
    assert steps.max() <= 5
    holds = (point.y > point.s)[:, :15, 0]
    assert (holds == (torch.arange(15) < 5)).all(-1).sum() >= 60  # of 64: it is a guess


def test_it_is_no_more_than_a_start() -> None:
    data, z = made(held=5)
    value, info = ti.quadratic_program(data.Q, data.p, data.G, data.h, data.A, data.b)
    assert info.converged.all()
    assert info.steps.max() <= 5
    torch.testing.assert_close(value, z, rtol=1e-11, atol=1e-11)


def test_it_finds_nothing_where_there_is_no_solution() -> None:
    data, _ = made(held=5)
    infeasible = Data(
        data.Q, data.p, torch.cat([data.G, -data.G], -2), torch.full((64, 30), -1, dtype=D), *NONES, None, None
    )
    unbounded = Data(torch.zeros_like(data.Q), data.p, data.G[:, :5], data.h[:, :5], *NONES, None, None)
    for programs in (infeasible, unbounded):
        _, ended, steps = guess(scaled(programs)[0].one_sided(0), 100)
        assert (ended != Status.CONVERGED).all()
        assert steps.max() <= 8


def test_its_steps_count_within_the_limit() -> None:
    data, _ = made(held=5)
    info = ti.quadratic_program(data.Q, data.p, data.G, data.h, data.A, data.b, max_steps=1, on_failure="ignore").info
    assert (info.steps == 1).all()


@pytest.mark.parametrize("beside", [-1.0, torch.nan])
def test_a_linear_program_is_solved_whatever_is_beside_it(beside: float) -> None:
    for seed in range(8):
        torch.manual_seed(seed)
        A, p, b = torch.randn(1, 4, dtype=D), torch.randn(4, dtype=D), torch.zeros(1, dtype=D)
        Q = torch.stack([torch.zeros(4, 4, dtype=D), beside * torch.eye(4, dtype=D)])
        info = ti.quadratic_program(Q, p, A=A, b=b, lower=-1.0, upper=1.0, on_failure="ignore").info
        assert info.status[0] == Status.CONVERGED
        assert info.status[1] in (Status.NONCONVEX, Status.NONFINITE)


@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_a_batch_of_no_programs(shape: tuple[int, ...]) -> None:
    p = torch.zeros(*shape, 3, dtype=D, requires_grad=True)
    z, _ = ti.quadratic_program(torch.eye(3, dtype=D).expand(*shape, 3, 3), p, lower=-1.0)
    assert z.shape == p.shape
    z.sum().backward()
    assert p.grad is not None
    assert p.grad.shape == p.shape
