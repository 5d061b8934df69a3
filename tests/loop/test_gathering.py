"""Systems that have ended are put aside, and large batches are solved in blocks: the same answers from fewer evaluations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.loop import blocks

from .test_counts import Operations

D = torch.float64
LU = "aten.linalg_lu_factor_ex.default"


def stiff(rows: int, n: int) -> tuple[Tensor, Tensor]:
    """Matrices and right-hand sides of systems of which few, all over the batch, need many more steps than the rest."""
    draw = torch.Generator().manual_seed(0)
    A = torch.eye(n, dtype=D) + torch.randn(rows, n, n, dtype=D, generator=draw) / (4 * n)
    b = torch.randn(rows, n, dtype=D, generator=draw)
    b[::7] *= 300
    return A, b


def g(z: Tensor, A: Tensor, b: Tensor) -> Tensor:
    return z + 0.1 * z**3 + (A @ z.unsqueeze(-1)).squeeze(-1) - b


@pytest.mark.sampled(3)
@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize(
    "solver", ["newton", ti.solvers.Newton(every=2), ti.solvers.Newton(line_search=ti.solvers.Backtracking()), "chord"]
)
def test_what_has_ended_is_left_out_of_the_evaluations_and_the_answers_are_the_same(n: int, solver: Any) -> None:
    A, b = stiff(2**14 + 100, n)
    if solver == "chord":
        b[::7] /= 150
    seen: list[int] = []

    def noted(z: Tensor, A: Tensor, b: Tensor) -> Tensor:
        seen.append(len(z))
        return g(z, A, b)

    def solve(batched: Any) -> Any:
        A_, b_ = A.clone().requires_grad_(), b.clone().requires_grad_()
        z, info = ti.root(
            noted, b / 2, (A_, b_), solver=solver, batch_ndim=1, batched=batched, rtol=0.0, atol=1e-10, max_steps=200
        )
        counted = sum(seen) / len(b)
        with Operations() as operations:
            gradients = torch.autograd.grad(z.sin().sum(), (A_, b_))
        seen.clear()
        return z.detach(), info, counted, gradients, operations.counts

    z, info, evaluated, gradients, _ = solve(None)
    same, its, fewer, theirs, operations = solve((True, True))
    assert info.converged.all()
    assert its.converged.all()
    assert torch.equal(info.steps, its.steps)
    assert torch.allclose(z, same, rtol=1e-9, atol=1e-9)
    assert all(torch.allclose(*pair, rtol=1e-8, atol=1e-8) for pair in zip(gradients, theirs, strict=True))
    assert fewer < 0.75 * evaluated
    assert its.evaluations < info.evaluations
    if solver != "chord":  # whose factors are those of the start
        assert operations[LU] == 0  # each system's own last factors have come back to its row


def energy(z: Tensor, A: Tensor, b: Tensor) -> Tensor:
    return (z**4 / 40 + z**2 - b * z).sum(-1) + (z * (A @ z.unsqueeze(-1)).squeeze(-1)).sum(-1) / 2


LOWER = torch.full((3000, 3), -1.0, dtype=D)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("problem", "options"),
    [
        (ti.root, {"solver": "newton_krylov"}),
        (ti.root, {"solver": ti.solvers.NewtonKrylov(line_search=ti.solvers.Backtracking(memory=3))}),
        (ti.minimize, {"solver": "newton_cg"}),
        (ti.minimize, {"bounds": (LOWER, 5.0)}),
        (ti.minimize, {"bounds": (LOWER, 5.0), "solver": ti.solvers.ProjectedNewton(max_inner=50)}),
    ],
    ids=["krylov", "krylov, searching", "cg", "projected", "projected cg"],
)
def test_methods_that_remember_without_a_graph_go_on_with_the_rest(problem: Any, options: dict[str, Any]) -> None:
    A, b = stiff(3000, 3)
    function = g if problem is ti.root else energy

    def solve(batched: Any) -> Any:
        b_ = b.clone().requires_grad_()
        with Operations() as operations:
            z, info = problem(function, b / 2, (A, b_), batch_ndim=1, batched=batched, rtol=0.0, atol=1e-8, **options)
        assert info.converged.all()
        return z.detach(), info.steps, torch.autograd.grad(z.sin().sum(), b_)[0], operations.counts

    z, steps, gradient, _ = solve(None)
    same, its, theirs, operations = solve((True, True))
    assert operations["aten.index_copy.default"] > 0  # the results of those that went on come back to their rows
    assert torch.equal(steps, its)
    assert torch.allclose(z, same, rtol=1e-9, atol=1e-9)
    assert torch.allclose(gradient, theirs, rtol=1e-8, atol=1e-8)


def test_a_system_that_fails_among_those_that_are_put_aside_keeps_its_place_and_its_best_point() -> None:
    A, b = stiff(2**14, 1)
    b[3], b[7] = torch.nan, 1e4
    z, info = ti.root(
        g, b / 2, (A, b), solver="newton", batch_ndim=1, batched=(True, True), max_steps=6, on_failure="ignore"
    )
    failed = (~info.converged).nonzero().flatten()
    assert info.status[3] == ti.Status.NONFINITE
    assert set(info.status[failed].tolist()) == {int(ti.Status.NONFINITE), int(ti.Status.MAX_STEPS)}
    assert (info.steps[info.status == ti.Status.MAX_STEPS] == 6).all()
    at_z = g(z, A, b).abs().squeeze(-1)
    finite = info.residual.isfinite()
    assert torch.allclose(at_z[finite], info.residual[finite], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("solver", ["newton", "chord", ti.solvers.Broyden(start="jacobian"), "anderson"])
def test_blocks_give_what_the_whole_batch_gives(monkeypatch: pytest.MonkeyPatch, solver: Any) -> None:
    A, b = stiff(50, 3)
    b[::7] /= 300
    b[:10] /= 100  # so that the blocks end after different numbers of steps

    def solve(**options: Any) -> Any:
        b_ = b.clone().requires_grad_()
        z, info = ti.root(g, b / 2, (A, b_), solver=solver, batch_ndim=1, rtol=0.0, atol=1e-10, **options)
        return z, info, torch.autograd.grad(z.sin().sum(), b_)[0]

    z, info, gradient = solve()
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", 30)
    same, its, theirs = solve(batched=(True, True))
    assert info.converged.all()
    assert its.converged.all()
    assert torch.equal(info.steps, its.steps)
    assert torch.allclose(z, same, rtol=1e-9, atol=1e-10)
    assert torch.allclose(gradient, theirs, rtol=1e-8, atol=1e-8)


def test_a_search_may_be_cut_short_right_after_systems_were_put_aside() -> None:
    """Newton's method has then no factors of those that went on."""
    A, b = stiff(2**10, 8)
    x = b.requires_grad_()
    for steps in range(1, 9):
        options = {"solver": "newton", "batch_ndim": 1, "max_steps": steps, "on_failure": "ignore"}
        z, info = ti.root(g, torch.zeros(2**10, 8, dtype=D), (A, x), batched=(True, True), **options)
        same, its = ti.root(g, torch.zeros(2**10, 8, dtype=D), (A, x), **options)
        assert torch.equal(info.status, its.status)
        torch.testing.assert_close(z, same, rtol=1e-9, atol=1e-9)
        found = info.converged
        (grad,), (right,) = torch.autograd.grad(z[found].sum(), x), torch.autograd.grad(same[found].sum(), x)
        torch.testing.assert_close(grad, right, rtol=1e-6, atol=1e-9)
