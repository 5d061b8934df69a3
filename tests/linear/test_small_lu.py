"""LU of small matrices for graphs: what LAPACK gives."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import torchimplicit
from torchimplicit.linear import small_lu, written_out

WRITTEN_OUT = [(n, dtype) for n in (1, 2, 3, 4) for dtype in (torch.float64, torch.float32)]


def systems(n: int, dtype: torch.dtype, batch: int = 70) -> tuple[Tensor, Tensor]:
    torch.manual_seed(n)
    A = torch.randn(batch, n, n, dtype=dtype)
    A[0, 0, 0] = 0.0  # no pivot where it stands
    return A, torch.randn(batch, n, dtype=dtype)


def backward_error(A: Tensor, x: Tensor, b: Tensor) -> Tensor:
    size = torch.linalg.matrix_norm(A) * torch.linalg.vector_norm(x, dim=-1)
    return torch.linalg.vector_norm((A @ x.unsqueeze(-1)).squeeze(-1) - b, dim=-1) / size


@pytest.mark.parametrize(("n", "dtype"), WRITTEN_OUT)
def test_written_out_factors_and_solutions_are_those_of_lapack(n: int, dtype: torch.dtype) -> None:
    A, b = systems(n, dtype, batch=5 if n == 1 else 70)
    A = A + 1 if n == 1 else A
    LU, pivots = written_out.factor(A)
    expected, rows = torch.linalg.lu_factor(A)
    torch.testing.assert_close(LU, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(pivots, rows)
    for adjoint in (False, True):
        x = written_out.solve(LU, pivots, b.unsqueeze(-1), adjoint).squeeze(-1)
        assert backward_error(A.mT if adjoint else A, x, b).max() < 4 * n * torch.finfo(dtype).eps


@pytest.mark.parametrize("n", [1, 6])
def test_a_definite_system_is_solved_without_pivots(n: int) -> None:
    A, b = systems(n, torch.float64)
    A = A @ A.mT + 0.1 * torch.eye(n, dtype=A.dtype)
    x = written_out.solve_definite(A, b.unsqueeze(-1)).squeeze(-1)
    assert backward_error(A, x, b).max() < 100 * torch.finfo(A.dtype).eps


def test_a_complex_system_is_solved_and_its_conjugate_transpose() -> None:
    torch.manual_seed(0)
    A, b = torch.randn(9, 3, 3, dtype=torch.complex128), torch.randn(9, 3, 2, dtype=torch.complex128)
    LU, pivots = written_out.factor(A)
    torch.testing.assert_close(A @ written_out.solve(LU, pivots, b, False), b)
    torch.testing.assert_close(A.mH @ written_out.solve(LU, pivots, b, True), b)


def test_no_two_operators_have_the_same_name() -> None:
    """The second to be registered would take the place of the first without a word."""
    source = Path(torchimplicit.__file__).parent
    names = [name for path in source.rglob("*.py") for name in re.findall(r'custom_op\("(.*?)"', path.read_text())]
    assert len(names) >= 3
    assert len(names) == len(set(names))


@pytest.mark.parametrize("n", [5, 8])
def test_many_small_matrices_are_factorised_as_by_lapack(n: int) -> None:
    A, b = systems(n, torch.float64)
    before = A.clone()
    LU, pivots = small_lu.factor(A)
    expected, rows = torch.linalg.lu_factor(A)
    assert torch.equal(A, before)
    torch.testing.assert_close(LU, expected)
    assert torch.equal(pivots, rows)
    for transposed in (False, True):
        x = small_lu.solve(LU, pivots, b, transposed)
        assert backward_error(A.mT if transposed else A, x, b).max() < 4 * n * torch.finfo(A.dtype).eps


def test_a_singular_matrix_leaves_its_neighbours_alone() -> None:
    A, b = systems(5, torch.float64)
    A[3], A[5, 0, 0] = 0, torch.nan
    LU, pivots = small_lu.factor(A)
    x = small_lu.solve(LU, pivots, b, False)
    others = [i for i in range(70) if i not in (3, 5)]
    assert not x[[3, 5]].isfinite().any(-1).any()
    torch.testing.assert_close(x[others], torch.linalg.solve(A[others], b[others]))


def test_what_the_code_is_not_for_is_left_to_lapack() -> None:
    A = torch.eye(4).expand(100, 4, 4)
    assert small_lu.pays(A)
    assert not small_lu.pays(A[:8])
    assert not small_lu.pays(A.to(torch.complex64))
    assert not small_lu.pays(torch.eye(20).expand(100, 20, 20))
