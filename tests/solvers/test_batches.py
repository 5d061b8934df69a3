"""Over random shapes, starts and bad rows: a batch is solved as its systems are one by one, for every solver."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import torchimplicit as ti

from ..every_solver import GENERAL

D = torch.float64
SOLVERS = {name: name for name in (*GENERAL, "auto")} | {
    "armijo": ti.solvers.Newton(line_search=ti.solvers.Backtracking()),
    "nonmonotone": ti.solvers.Newton(line_search=ti.solvers.Backtracking(memory=5)),
}
BAD = [None, torch.nan, torch.inf, 1e200]


FEW, MANY = (settings(max_examples=n, deadline=None, derandomize=True) for n in (25, 80))
RANDOM = given(
    solver=st.sampled_from(sorted(SOLVERS)),
    batch=st.integers(1, 4),
    n=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    start=st.sampled_from([0.0, 0.1, 1.0]),
    bad=st.sampled_from(BAD),
    in_start=st.booleans(),
)


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
def test_no_row_changes_another_row_nor_the_gradient_in_what_they_share(examples: settings) -> None:
    examples(RANDOM(_check_rows))()


def _check_rows(solver: str, batch: int, n: int, seed: int, start: float, bad: float | None, in_start: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    W, x, z0, v = (torch.randn(*s, n, dtype=D, generator=draw) for s in ((n,), (batch,), (batch,), (batch,)))
    W, z0 = W / (3 * n**0.5), start * z0
    good = list(range(batch))
    if bad is not None:
        (z0 if in_start else x)[0, 0] = bad
        good = good[1:]
    W.requires_grad_()
    x.requires_grad_()

    def solve(x: Tensor, z0: Tensor, batch_ndim: int) -> ti.Solution:
        def g(z: Tensor) -> Tensor:
            return z + 0.1 * z**3 - torch.tanh(z @ W.T + x)

        return ti.root(
            g, z0, solver=SOLVERS[solver], batch_ndim=batch_ndim, rtol=1e-11, max_steps=400, on_failure="ignore"
        )

    together, info = solve(x, z0, 1)
    alone = [solve(x[i], z0[i], 0) for i in range(batch)]
    for i in good:
        assert info.status[i] == alone[i].info.status
        assert abs(int(info.steps[i]) - int(alone[i].info.steps)) <= 1
    good = [i for i in good if info.converged[i]]
    if not good:
        return
    for i in good:
        assert torch.allclose(together[i], alone[i].value, rtol=1e-7, atol=1e-8)
    batched = torch.autograd.grad(sum((v[i] * together[i]).sum() for i in good), (W, x))
    single = torch.autograd.grad(sum((v[i] * alone[i].value).sum() for i in good), (W, x))
    assert torch.allclose(batched[0], single[0], rtol=1e-6, atol=1e-7)
    assert torch.allclose(batched[1][good], single[1][good], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("solver", GENERAL)
def test_no_systems_and_no_unknowns_are_solved_at_once(solver: str, shape: tuple[int, int]) -> None:
    x = torch.zeros(shape, dtype=D, requires_grad=True)
    z, info = ti.root(lambda z: z + z**3 - x, torch.ones_like(x), solver=SOLVERS[solver], batch_ndim=1)
    z.sum().backward()
    assert x.grad.shape == shape
    assert info.converged.shape == shape[:1]
    assert info.converged.all()


@pytest.mark.parametrize("seed", range(3))
def test_a_fixed_point_takes_the_steps_that_it_takes_alone_whenever_others_begin_to_mix(seed: int) -> None:
    """The automatic choice mixes once plain steps are slow, which differs from one system to the next."""
    draw = torch.Generator().manual_seed(seed)
    n, batch = 12, 30
    W = torch.randn(n, n, dtype=D, generator=draw)
    W = 0.97 * W / torch.linalg.matrix_norm(W, 2)
    x = torch.randn(batch, n, dtype=D, generator=draw) * torch.linspace(0.05, 3, batch, dtype=D).unsqueeze(-1)

    def solve(x: Tensor) -> ti.Solution:
        return ti.fixed_point(lambda z: torch.tanh(z @ W.T + x), torch.zeros_like(x), batch_ndim=1, rtol=1e-10)

    together = solve(x)
    alone = [solve(row[None]) for row in x]
    assert together.info.steps.tolist() == [int(one.info.steps) for one in alone]
    torch.testing.assert_close(together.value, torch.cat([one.value for one in alone]), rtol=1e-12, atol=1e-13)
    assert len(set(together.info.steps.tolist())) > 3
