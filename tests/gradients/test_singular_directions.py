"""A direction in which the Jacobian is singular is reported where the loss or the right-hand side sees it, and only there."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.status import Status

from .problems import randn
from .test_at_solution import D

C = randn(5, 6, seed=3).abs()
ROWS, COLUMNS = (torch.softmax(randn(k, seed=k), 0) for k in (5, 6))
EPSILON = 0.3


def sinkhorn(v: Tensor, C: Tensor, rows: Tensor) -> Tensor:
    """Both scalings of Sinkhorn's iteration for v, in the log domain. v may be moved by any constant."""
    u = EPSILON * (rows.log() - torch.logsumexp((v - C) / EPSILON, -1))
    return EPSILON * (COLUMNS.log() - torch.logsumexp((u[:, None] - C) / EPSILON, 0))


def cost(v: Tensor, C: Tensor, rows: Tensor) -> Tensor:
    """⟨P, C⟩, which does not see that constant."""
    u = EPSILON * (rows.log() - torch.logsumexp((v - C) / EPSILON, -1))
    return (((u[:, None] + v - C) / EPSILON).exp() * C).sum()


@cache
def by_the_chain_rule() -> Tensor:
    """The derivative of the cost after 2000 of Sinkhorn's steps."""
    x, v = C.clone().requires_grad_(), torch.zeros(6, dtype=D)
    for _ in range(2000):
        v = sinkhorn(v, x, ROWS)
    (gradient,) = torch.autograd.grad(cost(v, x, ROWS), x)
    return gradient


@pytest.mark.parametrize("linear_solver", [None, ti.linear.LU(), ti.linear.GMRES(), ti.linear.BiCGStab()])
def test_a_gauge_that_the_loss_does_not_see_is_no_singularity(linear_solver: Any) -> None:
    def solve(C: Tensor, rows: Tensor) -> tuple[Tensor, ti.SolveInfo]:
        options = {"solver": "picard", "rtol": 1e-11, "adjoint": ti.Implicit(linear_solver)}
        return ti.fixed_point(sinkhorn, torch.zeros(6, dtype=D), (C, rows), **options)

    x = C.clone().requires_grad_()
    v, info = solve(x, ROWS)
    (found,) = torch.autograd.grad(cost(v, x, ROWS), x)
    assert info.adjoint.converged
    assert torch.allclose(found, by_the_chain_rule(), atol=1e-8)
    x = C.clone().requires_grad_()
    with pytest.warns(ti.ConvergenceWarning, match="singular"):  # the constant itself depends on the start alone
        solve(x, ROWS)[0][0].backward()
    if linear_solver is not None:  # marginals that do not sum to the same admit no fixed point
        rows = ROWS.clone().requires_grad_()
        v, _ = solve(C, rows)
        with pytest.warns(ti.ConvergenceWarning, match="singular"):
            cost(v, C, rows).backward()


@pytest.mark.parametrize("small", [1.0, 1e-8, 1e-15])
def test_a_singular_direction_is_seen_beside_one_in_other_units(small: float) -> None:
    b = torch.tensor([0.0, 1.0], dtype=D, requires_grad=True)
    A = torch.diag(torch.tensor([0.0, small], dtype=D))
    z = ti.root(lambda z, b: A @ z - small * b, torch.tensor([2.0, 1.0], dtype=D), (b,), solver="newton").value
    with pytest.warns(ti.ConvergenceWarning, match="singular"):
        z.sum().backward()


@pytest.mark.parametrize("n", [2, 5, 64])
@pytest.mark.parametrize("solver", [ti.linear.GMRES(), ti.linear.BiCGStab(), ti.linear.CG()], ids=repr)
def test_a_krylov_solver_that_happens_upon_a_consistent_system_is_reported(n: int, solver: Any) -> None:
    A = torch.zeros(n, n, dtype=D)
    A[0, 0] = 1.0
    A[0, 1] = 0.0 if isinstance(solver, ti.linear.CG) else 1.0
    b = torch.zeros(n, dtype=D)
    b[0] = 1.0
    for run in (
        lambda b: ti.linear_solve(A, b, solver=solver),
        lambda b: ti.linear_solve(A.mv, b, solver=solver),
        lambda b: ti.root(lambda y: A @ y - b, b.detach(), adjoint=ti.Implicit(solver)),
    ):
        x = b.clone().requires_grad_()
        solution, info = run(x)
        assert torch.allclose(A @ solution, b)
        with pytest.warns(ti.ConvergenceWarning, match="singular"):
            solution[0].backward()
        assert info.adjoint.status == Status.SINGULAR
