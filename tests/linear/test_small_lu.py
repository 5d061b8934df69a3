"""LU of many small matrices side by side equals LAPACK's of each."""

from __future__ import annotations

import pytest
import torch

from torchimplicit.linear.small_lu import factor_and_solve, solve_transposed


@pytest.mark.parametrize("n", [2, 5, pytest.param(16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_factors_and_solutions_are_those_of_lapack(n: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    A = torch.randn(n, 101, n, dtype=dtype).movedim(1, 0)  # rows far apart, and a number that no vector divides
    b = torch.randn(101, n, dtype=dtype)
    expected = torch.linalg.lu_factor(A)
    LU = A.clone(memory_format=torch.preserve_format)
    assert not LU.is_contiguous()
    pivots, x = factor_and_solve(LU, b)
    assert torch.equal(pivots, expected[1])
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(LU, expected[0], **tolerance)
    size = torch.linalg.matrix_norm(A) * torch.linalg.vector_norm(x, dim=-1)
    backward_error = torch.linalg.vector_norm((A @ x.unsqueeze(-1)).squeeze(-1) - b, dim=-1) / size
    assert backward_error.max() < 4 * n * torch.finfo(dtype).eps
    y = solve_transposed(LU, pivots, b)
    size = torch.linalg.matrix_norm(A) * torch.linalg.vector_norm(y, dim=-1)
    backward_error = torch.linalg.vector_norm((A.mT @ y.unsqueeze(-1)).squeeze(-1) - b, dim=-1) / size
    assert backward_error.max() < 4 * n * torch.finfo(dtype).eps


def test_a_singular_matrix_leaves_its_neighbours_alone() -> None:
    torch.manual_seed(0)
    A, b = torch.randn(70, 3, 3, dtype=torch.float64), torch.randn(70, 3, dtype=torch.float64)
    A[3], A[5, 0, 0] = 0, torch.nan
    _, x = factor_and_solve(A.clone(), b)
    others = [i for i in range(70) if i not in (3, 5)]
    assert not x[[3, 5]].isfinite().any(-1).any()
    torch.testing.assert_close(x[others], torch.linalg.solve(A[others], b[others]))


def test_a_zero_on_the_diagonal_is_pivoted() -> None:
    A = torch.tensor([[0.0, 2.0], [3.0, 0.0]], dtype=torch.float64).repeat(64, 1, 1)
    b = torch.tensor([4.0, 9.0], dtype=torch.float64).repeat(64, 1)
    pivots, x = factor_and_solve(A, b)
    assert (pivots == torch.tensor([2, 2])).all()
    assert (x == torch.tensor([3.0, 2.0])).all()
    assert (solve_transposed(A, pivots, b) == torch.tensor([4.5, 4 / 3], dtype=torch.float64)).all()
