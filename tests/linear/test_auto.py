"""The automatic choice follows its documented rule, and gives the same answer on both sides of every threshold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torchimplicit.linear import Auto, Dense, Diagonal, LinearOperator, MatrixFree, Sparse


def test_the_rule(matrix: Callable, matrix_free: Callable) -> None:
    def choice(operator: LinearOperator, **fields: int) -> str:
        return Auto(**fields).factorize(operator).choice

    A, S = matrix(5), matrix(5, definite=True)
    assert choice(Diagonal(torch.ones(5))) == "diagonal"
    assert choice(Dense(A), dense_limit=2) == "LU"
    assert choice(Dense(A).H, dense_limit=2) == "LU"
    assert choice(Dense(S, positive_definite=True)) == "Cholesky"
    assert choice(matrix_free(A)) == "LU"
    assert choice(matrix_free(A), dense_limit=5) == "LU"
    assert choice(matrix_free(A), dense_limit=4) == "GMRES"
    assert choice(matrix_free(A).H, dense_limit=4) == "GMRES"
    assert choice(matrix_free(S, symmetric=True), dense_limit=4) == "MINRES"  # may be indefinite
    assert choice(matrix_free(S, positive_definite=True), dense_limit=4) == "CG"
    assert choice(Sparse(A.to_sparse_coo())) == "SuperLU"


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("adjoint", [False, True])
def test_diagonal_systems_are_divided(dtype: torch.dtype, adjoint: bool) -> None:
    d = torch.randn(3, 4, dtype=dtype)
    d[1, 2] = 0
    b = torch.randn(2, 3, 4, dtype=dtype)
    state = Auto().factorize(Diagonal(d))
    expected = b / (d.conj() if adjoint else d)
    good = [0, 2]
    torch.testing.assert_close(state.solve(b, adjoint)[:, good], expected[:, good])
    result = state.iterate(b, adjoint)
    torch.testing.assert_close(result.x[:, good], expected[:, good])
    assert result.converged.tolist() == [[True, False, True]] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
@pytest.mark.parametrize("bad", [[], [0.0], [torch.inf], [torch.nan], ["subnormal"], [0.0, "subnormal", torch.nan]])
def test_a_division_is_singular_where_a_number_or_its_inverse_is_not_finite(bad: list, dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal
    numbers = [tiny / 8 if number == "subnormal" else number for number in bad]
    d = torch.tensor([*numbers, 1.0, -3.0, tiny, torch.finfo(dtype).max / 4], dtype=dtype).unsqueeze(-1)
    singular = Auto().factorize(Diagonal(d)).direct.singular
    assert singular.tolist() == [True] * len(bad) + [False] * 4


@pytest.mark.parametrize("definite", [False, True])
@pytest.mark.parametrize("adjoint", [False, True])
def test_same_answer_around_every_threshold(
    definite: bool, adjoint: bool, matrix: Callable, matrix_free: Callable, reference: Callable, close: Callable
) -> None:
    n = 12
    A, b = matrix(n, (2,), definite=definite), torch.randn(3, 2, n, dtype=torch.float64)
    for limit in (n - 1, n):
        for fallback in (n - 1, n):
            for steps in (1, None):  # 1: the iterative solver fails
                solver = Auto(dense_limit=limit, fallback_limit=fallback, max_steps=steps)
                state = solver.factorize(matrix_free(A, positive_definite=definite))
                if steps is None or limit == n or fallback == n:
                    result = state.iterate(b, adjoint, rtol=1e-12)
                    assert result.converged.all()
                    close(result.x, reference(A, b, adjoint), tol=1e-9)


def fails_for_gmres(n: int) -> tuple[Tensor, Tensor]:
    """An easy system, the cyclic shift on which restarted GMRES makes no progress, and a NaN system."""
    shift = torch.eye(n, dtype=torch.float64).roll(1, 0)
    A = torch.stack([torch.diag(torch.linspace(1, 2, n, dtype=torch.float64)), shift, torch.nan * shift])
    return A, torch.eye(n, dtype=torch.float64)[0].expand(3, n)


def test_dense_fallback_solves_what_gmres_could_not(matrix_free: Callable) -> None:
    A, b = fails_for_gmres(10)
    operator = matrix_free(A)
    without = Auto(dense_limit=0, fallback_limit=0, restart=4).factorize(operator).iterate(b)
    assert without.converged.tolist() == [True, False, False]
    result = Auto(dense_limit=0, restart=4).factorize(operator).iterate(b)
    assert result.converged.tolist() == [True, True, False]
    assert torch.equal(result.x[0], without.x[0])  # what had converged is kept as it was
    torch.testing.assert_close(result.x[1], torch.linalg.solve(A[1], b[1]))
    assert result.breakdown.tolist() == [False, False, True]


def test_no_second_solver_runs_when_the_first_one_succeeds(matrix: Callable) -> None:
    calls = []
    A, b = matrix(10), torch.randn(10, dtype=torch.float64)
    operator = MatrixFree(lambda x: calls.append(1) or A @ x, n=10, dtype=A.dtype)
    result = Auto(dense_limit=0).factorize(operator).iterate(b)
    assert result.products == len(calls) == result.steps + 1


def test_a_false_promise_of_definiteness(matrix_free: Callable, reference: Callable, close: Callable) -> None:
    """One system of the batch is definite, one is not: Cholesky and CG fail on it, and LU takes over."""
    A = torch.tensor([[[2.0, 1.0], [1.0, 2.0]], [[1.0, 2.0], [2.0, 1.0]]], dtype=torch.float64)
    b = torch.randn(3, 2, 2, dtype=torch.float64)
    close(Auto().factorize(Dense(A, positive_definite=True)).solve(b), reference(A, b))
    close(Auto(dense_limit=0).factorize(matrix_free(A, positive_definite=True)).solve(b), reference(A, b))
