"""Every operator by every solver, in every way that a solution is asked for, against dense linear algebra."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from tests.linear import every_linear_solver
from tests.linear.every_linear_solver import every
from tests.linear.structured import CASES, N
from torchimplicit.linear import GMRES, LSMR, SVD, Dense, Diagonal, Jacobi, MatrixFree

STEPS = 60  # in transforms so many are taken
GENERAL, DEFINITE = (
    every(names, max_steps=STEPS) for names in (every_linear_solver.GENERAL, every_linear_solver.DEFINITE)
)
PAIRS = [(kind, solver) for kind in CASES for solver in (*GENERAL, *DEFINITE)]


def product(A: Tensor, x: Tensor) -> Tensor:
    return (A @ x.unsqueeze(-1)).squeeze(-1)


def both(kind: str, solver: str, adjoint: bool = False) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The solution of A x = b from (b, *tensors) by the solver, and by dense means; of (A Aᴴ + I) x = b where it has to be definite."""
    case, one = CASES[kind], Diagonal(torch.ones(N, dtype=torch.float64))

    def ours(b: Tensor, *tensors: Tensor) -> Tensor:
        A = case.operator(*tensors)
        A = A.H if adjoint else A
        if solver in GENERAL:
            return ti.linear_solve(A, b, solver=GENERAL[solver], rtol=1e-12).value
        return ti.linear_solve(A @ A.H + one, b, solver=DEFINITE[solver], rtol=1e-11).value

    def truth(b: Tensor, *tensors: Tensor) -> Tensor:
        A = case.dense(*tensors)
        A = A.mH if adjoint else A
        A = A if solver in GENERAL else A @ A.mH + torch.eye(N)
        return torch.linalg.solve(A, b.unsqueeze(-1)).squeeze(-1)

    return ours, truth


def close(ours: Any, truth: Any) -> None:
    torch.testing.assert_close(ours, truth, rtol=1e-6, atol=1e-8)


@pytest.mark.sampled(15)
@pytest.mark.parametrize(("kind", "solver"), PAIRS)
def test_value_transpose_derivatives_and_vmap(kind: str, solver: str) -> None:
    torch.manual_seed(sum(map(ord, kind + solver)))
    tensors = CASES[kind].tensors()
    inputs = (torch.randn(N, dtype=torch.float64), *tensors)
    tangents = tuple(torch.randn_like(t) for t in inputs)
    weights = torch.randn(N, dtype=torch.float64)
    several = (torch.randn(3, N, dtype=torch.float64), *CASES[kind].tensors(3))
    found = []
    for solve in both(kind, solver):
        leaves = [t.clone().requires_grad_() for t in inputs]
        value = solve(*leaves)
        slopes = torch.autograd.grad((value * weights).sum() + value.square().sum(), leaves, create_graph=True)
        curvature = torch.autograd.grad(sum((s * t).sum() for s, t in zip(slopes, tangents)), leaves)
        forward = torch.func.jvp(solve, inputs, tangents)[1]
        over_all = torch.vmap(solve)(*several)
        over_b = torch.vmap(solve, (0, *(None for _ in tensors)))(several[0], *tensors)
        found.append([value, *slopes, *curvature, forward, over_all, over_b])
    close(*found)
    ours, truth = both(kind, solver, adjoint=True)
    close(ours(*inputs), truth(*inputs))


@pytest.mark.parametrize("solver", [*GENERAL, *DEFINITE])
@pytest.mark.parametrize("known", ["dense", "by products"])
def test_what_has_no_solution_is_never_called_solved(solver: str, known: str) -> None:
    torch.manual_seed(0)
    A = torch.randn(N, 3, dtype=torch.float64)
    A = A @ A.T if solver in DEFINITE else A @ torch.randn(3, N, dtype=torch.float64)
    operator = Dense(A) if known == "dense" else MatrixFree(lambda x: A @ x, n=N, dtype=A.dtype)
    b = torch.randn(4, N, dtype=torch.float64)
    info = ti.linear_solve(operator, b, solver=(GENERAL | DEFINITE)[solver], rtol=1e-10, on_failure="ignore").info
    assert not info.converged.any()


@pytest.mark.parametrize("solver", [SVD(), LSMR(), LSMR(max_steps=500), None])
@pytest.mark.parametrize(("m", "n"), [(7, 4), (4, 7), (6, 6)])
def test_the_shortest_and_the_nearest_by_choice(solver: Any, m: int, n: int) -> None:
    torch.manual_seed(0)
    A, b = torch.randn(m, n, dtype=torch.float64), torch.randn(3, m, dtype=torch.float64)
    z, info = ti.linear_solve(A, b, solver=solver, shortest=True, rtol=1e-11)
    assert info.converged.all()
    close(z, (torch.linalg.pinv(A) @ b.mT).mT)


def test_a_preconditioner_in_every_way() -> None:
    torch.manual_seed(0)
    A = torch.randn(3, N, N, dtype=torch.float64) + 5 * torch.eye(N, dtype=torch.float64)
    b = torch.randn(3, N, dtype=torch.float64)

    def solve(A: Tensor, b: Tensor) -> Tensor:
        return ti.linear_solve(A, b, solver=GMRES(preconditioner=Jacobi(2), max_steps=STEPS), rtol=1e-12).value

    close(torch.vmap(solve)(A, b), torch.linalg.solve(A, b))
    tangents = (torch.randn_like(A), torch.randn_like(b))
    close(torch.func.jvp(solve, (A, b), tangents), torch.func.jvp(torch.linalg.solve, (A, b), tangents))
