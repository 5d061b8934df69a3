"""Direct solvers: exact solutions from one factorisation, and singular systems seen and contained."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from torchimplicit.linear import LU, QR, Cholesky, Dense

SOLVERS = [LU(), QR(), Cholesky()]
NAN, INF = float("nan"), float("inf")


def singular(solver: object, A: list | torch.Tensor, dtype: torch.dtype = torch.float64) -> list | bool:
    return solver.factorize(Dense(torch.as_tensor(A, dtype=dtype))).singular.tolist()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
def test_factors_travel_as_plain_tensors(solver: LU, dtype: torch.dtype, matrix: Callable, close: Callable) -> None:
    A, b = matrix(4, (3, 2), dtype, definite=True), torch.randn(5, 3, 2, 4, dtype=dtype)
    state = solver.factorize(Dense(A))
    assert all(t.shape[:2] == (3, 2) for t in state.tensors)
    again = type(solver).from_tensors(tuple(t.clone() for t in state.tensors))
    for adjoint in (False, True):
        close(again.solve(b, adjoint), state.solve(b, adjoint), tol=0)
    assert not again.singular.any()


@pytest.mark.parametrize("solver", [LU(), QR()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "A",
    [
        [[1, 2], [2, 4]],
        [[0.1, 0.2], [0.3, 0.6]],
        [[0, 0], [1, 2]],
        [[0, 1], [0, 2]],
        [[0, 0], [0, 0]],
        [[1, -1], [-1, 1]],
        [[1e-20, 2e-20], [1, 2]],
        [[0.0]],
        [[NAN, 0], [0, 1]],
        [[INF, 0], [0, 1]],
    ],
)
def test_singular_matrices_are_seen(solver: LU, A: list, dtype: torch.dtype) -> None:
    assert singular(solver, A, dtype) is True


@pytest.mark.parametrize("solver", [LU(), QR()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "A",
    [
        [[1e-20, 0], [0, 1]],
        [[1e-30, 0], [0, 1e30]],
        [[1, 1e20], [1, 1]],
        [[1e-20, 1], [1, 1]],
        [[0, 1], [1e-20, 0]],
        [[1, 1e-20], [1, 2e-20]],
        [[1, 2], [3e-20, 4e-20]],
        [[1e-38]],
    ],
)
def test_bad_scaling_is_not_singularity(solver: LU, A: list, dtype: torch.dtype) -> None:
    assert singular(solver, A, dtype) is False


@pytest.mark.parametrize("solver", [LU(), QR()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
@pytest.mark.parametrize("n", [2, 3, 10, 40])
def test_random_matrices_of_deficient_and_full_rank(solver: LU, n: int, dtype: torch.dtype) -> None:
    B = 50
    deficient = torch.randn(B, n, n - 1, dtype=dtype) @ torch.randn(B, n - 1, n, dtype=dtype)
    rows = torch.logspace(-9, 9, n, dtype=torch.float64).to(dtype)
    assert solver.factorize(Dense(deficient)).singular.all()
    assert solver.factorize(Dense(rows[:, None] * deficient)).singular.all()
    full = torch.linalg.qr(torch.randn(B, n, n, dtype=dtype))[0]
    assert not solver.factorize(Dense(full)).singular.any()
    assert not solver.factorize(Dense(rows[:, None] * full)).singular.any()
    assert not solver.factorize(Dense(full * rows)).singular.any()


def test_cholesky_refuses_what_is_not_hermitian_positive_definite() -> None:
    assert singular(Cholesky(), [[2, 1], [1, 2]]) is False
    assert singular(Cholesky(), [[1e-20, 0], [0, 1e20]]) is False
    assert singular(Cholesky(), [[1, 2], [2, 1]]) is True  # indefinite
    assert singular(Cholesky(), [[1, 1], [1, 1]]) is True  # semi-definite
    assert singular(Cholesky(), [[-1.0]]) is True
    assert singular(Cholesky(), [[2, 1], [0, 2]]) is True  # not symmetric
    assert singular(Cholesky(), [[2, 1j], [1j, 2]], torch.complex128) is True  # symmetric, but not Hermitian
    assert singular(Cholesky(), [[2, 1j], [-1j, 2]], torch.complex128) is False
    assert singular(Cholesky(), [[NAN, 0], [0, 1]]) is True


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("bad", [0.0, NAN, INF])
def test_a_bad_system_stays_alone(
    solver: LU, bad: float, matrix: Callable, reference: Callable, close: Callable
) -> None:
    A, b = matrix(4, (3,), definite=True), torch.randn(2, 3, 4, dtype=torch.float64)
    A[1] = bad
    state = solver.factorize(Dense(A))
    assert state.singular.tolist() == [False, True, False]
    for adjoint in (False, True):
        x = state.solve(b, adjoint)
        good = [0, 2]
        close(x[:, good], reference(A[good], b[:, good], adjoint))
        assert not x[:, 1].isfinite().all()


@pytest.mark.parametrize("solver", [LU(), QR()])
def test_scaling_of_rows_and_columns_costs_no_accuracy(solver: LU, matrix: Callable, close: Callable) -> None:
    """With x known: (D A C) (C⁻¹ x) = D A x, for powers of two in D and C."""
    A, x = matrix(5), torch.randn(5, dtype=torch.float64)
    D, C = 2.0 ** torch.tensor([40.0, -30, 0, 10, -50]), 2.0 ** torch.tensor([-20.0, 0, 60, 5, -45])
    state = solver.factorize(Dense(D.double()[:, None] * A * C.double()))
    close(C * state.solve(D * (A @ x)), x)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_rectangular_operator_is_refused(solver: LU) -> None:
    with pytest.raises(ValueError, match=r"solves square systems and was given .*\(2, 3\); expected \(\.\.\., n, n\)"):
        solver.factorize(Dense(torch.ones(2, 3)))
