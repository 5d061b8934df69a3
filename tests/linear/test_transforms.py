"""Inside torch.func transforms: the same solutions as a loop, although nothing may stop early there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.linear.every_linear_solver import ALL, every
from torchimplicit.linear import CG, GMRES, LU, MINRES, Auto, BiCGStab, Dense, MatrixFree, Neumann, Richardson

SOLVERS = [
    *every(ALL).values(),
    GMRES(restart=3),
    GMRES(preconditioner=LU()),
    Richardson(preconditioner=LU(), max_steps=3),
    Neumann(5),
    Auto(dense_limit=0),
]


def solve(solver: Any, kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    def f(A: Tensor, b: Tensor) -> Tensor:
        operator = Dense(A)
        if kind == "matrix-free":
            operator = MatrixFree(lambda x: (A @ x.unsqueeze(-1)).squeeze(-1), n=4, batch_shape=(2,), dtype=A.dtype)
        state = solver.factorize(operator)
        x: Tensor = state.solve(b) + 2 * state.solve(b, adjoint=True)
        return x

    return f


@pytest.mark.sampled(4)
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("kind", ["dense", "matrix-free"])
def test_vmap_is_the_loop(solver: Any, kind: str, matrix: Callable) -> None:
    A, b = matrix(4, (3, 2), definite=True), torch.randn(3, 2, 4, dtype=torch.float64)
    b[1, 0] = 0
    f = solve(solver, kind)
    loop = torch.stack([f(M, v) for M, v in zip(A, b)])
    torch.testing.assert_close(torch.vmap(f)(A, b), loop, rtol=1e-6, atol=1e-7)
    shared = torch.vmap(f, (None, 0))(A[0], b)
    torch.testing.assert_close(shared, torch.stack([f(A[0], v) for v in b]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("solver", [CG(), MINRES(), GMRES()], ids=repr)
def test_matrices_of_a_vmap_are_iterated_on(solver: Any, matrix: Callable) -> None:
    A, b = matrix(4, (3, 2), definite=True), torch.randn(3, 2, 4, dtype=torch.float64)
    expected = torch.linalg.solve(A, b) + 2 * torch.linalg.solve(A.mT, b)
    torch.testing.assert_close(torch.vmap(solve(solver, "dense"))(A, b), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("solver", [LU(), GMRES(), BiCGStab(), CG(), Auto(dense_limit=0)], ids=repr)
def test_a_jacobian_by_vmap_and_by_autograd(solver: Any, matrix: Callable) -> None:
    A, b = matrix(3, (2,), definite=True), torch.randn(2, 3, dtype=torch.float64)

    def f(b: Tensor) -> Tensor:
        state = solver.factorize(Dense(A))
        return state.solve(b) if isinstance(solver, LU) else state.iterate(b, rtol=1e-12).x

    inverse = torch.zeros(2, 3, 2, 3, dtype=torch.float64)
    for i in range(2):
        inverse[i, :, i] = torch.linalg.inv(A[i])
    torch.testing.assert_close(torch.func.jacrev(f)(b), inverse, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(torch.func.jacfwd(f)(b), inverse, rtol=1e-6, atol=1e-7)


def test_a_state_made_outside_serves_inside(matrix: Callable) -> None:
    A, b = matrix(4), torch.randn(5, 4, dtype=torch.float64)
    for solver in (LU(), GMRES(), Auto()):
        state = solver.factorize(Dense(A))
        torch.testing.assert_close(torch.vmap(state.solve)(b), state.solve(b))
    operator = MatrixFree(lambda x: A @ x, n=4, dtype=A.dtype)
    operator.rmatvec(b[0])  # the linearisation kept from here is not the one used inside
    torch.testing.assert_close(torch.vmap(operator.rmatvec)(b), b @ A)
    torch.testing.assert_close(operator.rmatvec(b[0]), A.mT @ b[0])


def test_singularity_is_seen_inside(matrix: Callable) -> None:
    A = matrix(3, (3,))
    A[1, 0] = 0
    assert torch.vmap(lambda M: LU().factorize(Dense(M)).singular)(A).tolist() == [False, True, False]
    mixed = torch.vmap(lambda M, v: GMRES().factorize(Dense(M)).iterate(v).converged)(A, torch.ones(3, 3).double())
    assert mixed.tolist() == [True, False, True]
