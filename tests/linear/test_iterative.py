"""Iterative solvers: the solution of each system, whatever its neighbours do, and nothing claimed that is not so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.linear.every_linear_solver import DEFINITE, DIRECT, ITERATIVE, every
from torchimplicit.linear import (
    CG,
    GMRES,
    LSMR,
    LU,
    MINRES,
    Auto,
    BiCGStab,
    Dense,
    Geometry,
    Jacobi,
    MatrixFree,
    Neumann,
    Richardson,
)
from torchimplicit.linear.solver import linear_status
from torchimplicit.status import Status

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
KRYLOV = [*every(ITERATIVE).values(), GMRES(restart=4, max_steps=500)]
EVERY = [
    *KRYLOV,
    *every(DIRECT).values(),
    Richardson(),
    Neumann(60),
    Auto(dense_limit=0),
    CG(preconditioner=LU()),
    GMRES(preconditioner=LU()),
    BiCGStab(preconditioner=LU()),
    Neumann(30, preconditioner=LU()),
]


def system(solver: Any, matrix: Callable, n: int, batch: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A matrix of the kind the solver is for: definite, or within 1/2 of the identity, or any."""
    A = matrix(n, batch, dtype, definite=type(solver).__name__ in DEFINITE)
    if isinstance(solver, (Richardson, Neumann)):
        eye = torch.eye(n, dtype=dtype)
        A = eye + (A - eye) * (0.5 / torch.linalg.vector_norm(A - eye, dim=(-2, -1), keepdim=True))
    return A


def tight(state: Any, b: Tensor, adjoint: bool = False) -> Tensor:
    """The solution to a tolerance near the rounding level, by whatever way the state offers."""
    if not hasattr(state, "iterate"):
        return state.solve(b, adjoint)
    result = state.iterate(b, adjoint, rtol=100 * torch.finfo(b.dtype).eps, max_steps=500)
    assert result.converged.all()
    return result.x


@pytest.mark.sampled(13)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", EVERY, ids=repr)
@pytest.mark.parametrize("batch", [(), (2, 3)])
@pytest.mark.parametrize("kind", ["dense", "matrix-free"])
def test_agrees_with_a_dense_solve(
    solver: Any,
    dtype: torch.dtype,
    batch: tuple[int, ...],
    kind: str,
    matrix: Callable,
    matrix_free: Callable,
    reference: Callable,
    close: Callable,
) -> None:
    """A and Aᴴ, one and several right-hand sides, from one factorisation."""
    n = 6
    A = system(solver, matrix, n, batch, dtype)
    state = solver.factorize(Dense(A) if kind == "dense" else matrix_free(A))
    for lead in ((), (4,), (2, 2)):
        b = torch.randn(*lead, *batch, n, dtype=dtype)
        for adjoint in (False, True):
            close(tight(state, b, adjoint), reference(A, b, adjoint), tol=2e4 * torch.finfo(dtype).eps)
            default = 100 * torch.finfo(dtype).eps ** 0.5
            close(state.solve(b, adjoint), reference(A, b, adjoint), tol=default)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    solver=st.sampled_from(EVERY),
    batch=st.lists(st.integers(0, 3), max_size=2).map(tuple),
    lead=st.lists(st.integers(0, 3), max_size=2).map(tuple),
    n=st.integers(1, 7),
    adjoint=st.booleans(),
)
def test_all_shapes(
    solver: Any,
    batch: tuple[int, ...],
    lead: tuple[int, ...],
    n: int,
    adjoint: bool,
    matrix: Callable,
    reference: Callable,
    close: Callable,
) -> None:
    A = system(solver, matrix, n, batch, torch.float64)
    b = torch.randn(*lead, *batch, n, dtype=torch.float64)
    close(tight(solver.factorize(Dense(A)), b, adjoint), reference(A, b, adjoint), tol=1e-9)


@pytest.mark.parametrize("solver", [*KRYLOV, Richardson(preconditioner=LU()), Auto(), Auto(dense_limit=0)], ids=repr)
class TestBatches:
    def test_zero_gives_zero_in_no_steps(self, solver: Any, matrix: Callable) -> None:
        A = matrix(4, (2,), definite=True)
        b = torch.stack([torch.zeros(4, dtype=A.dtype), torch.randn(4, dtype=A.dtype)])
        for x0 in (None, torch.ones_like(b)):
            result = solver.factorize(Dense(A)).iterate(b, x0=x0)
            assert (result.x[0] == 0).all()
            assert result.steps[0] == 0
            assert result.residual_norm[0] == 0
            assert result.converged.all()
            assert result.steps[1] > 0

    def test_a_bad_system_changes_nothing_for_the_others(self, solver: Any, matrix: Callable) -> None:
        """Easy, hard, singular, NaN, infinite and zero matrices, and a NaN right-hand side, in one batch."""
        n = 6
        eye = torch.eye(n, dtype=torch.float64)
        hard = eye + 0.9 * torch.diag(torch.linspace(-1, 1, n, dtype=torch.float64))
        U = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0]
        deficient = torch.diag(torch.tensor([1.0, 2, 3, 4, 5, 0], dtype=torch.float64))
        good = torch.stack([2 * eye, U @ hard @ U.T])
        bad = torch.stack([U @ deficient @ U.T, torch.nan * eye, torch.inf * eye, 0 * eye, eye])
        b = torch.randn(7, n, dtype=torch.float64)
        b[6, 0] = torch.nan

        alone = solver.factorize(Dense(good)).iterate(b[:2])
        result = solver.factorize(Dense(torch.cat([good, bad]))).iterate(b)
        assert result.converged.tolist() == [True, True, False, False, False, False, False]
        torch.testing.assert_close(result.x[:2], alone.x, rtol=1e-12, atol=0)
        assert torch.equal(result.steps[:2], alone.steps)
        assert result.breakdown[3:5].all()
        assert result.breakdown[5] or isinstance(solver, LSMR)  # of nothing 0 is the least squares solution
        assert result.x[:6].isfinite().all()  # the best x seen
        assert not result.x[6].isfinite().all()

    def test_the_residual_is_the_true_one(self, solver: Any, matrix: Callable) -> None:
        A, b = matrix(20, (3,), definite=True), torch.randn(3, 20, dtype=torch.float64)
        for steps in (1, 2, 5, 400):
            result = solver.factorize(Dense(A)).iterate(b, max_steps=steps, rtol=1e-10)
            residual = torch.linalg.vector_norm(b - (A @ result.x.unsqueeze(-1)).squeeze(-1), dim=-1)
            torch.testing.assert_close(result.residual_norm, residual, rtol=1e-3, atol=1e-14)
            norm_b = torch.linalg.vector_norm(b, dim=-1)
            assert torch.equal(result.converged, result.residual_norm <= 1e-10 * norm_b)
            assert (result.residual_norm <= norm_b).all()  # never worse than x = 0
        assert result.converged.all()

    @pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
    def test_the_size_of_b_does_not_matter(self, solver: Any, scale: float, matrix: Callable) -> None:
        """Squares of such numbers do not exist in float32."""
        A, b = matrix(5, (3,), torch.float32, definite=True), torch.randn(3, 5)
        state = solver.factorize(Dense(A))
        one, scaled = state.iterate(b), state.iterate(scale * b)
        assert scaled.converged.all()
        torch.testing.assert_close(scaled.x / scale, one.x, rtol=1e-3, atol=1e-4)

    def test_a_good_start_saves_steps(self, solver: Any, matrix: Callable) -> None:
        A, b = matrix(8, (2,), definite=True), torch.randn(2, 8, dtype=torch.float64)
        x = torch.linalg.solve(A, b)
        result = solver.factorize(Dense(A)).iterate(b, x0=x)
        assert result.steps.tolist() == [0, 0]
        assert torch.equal(result.x, x)

    def test_absolute_tolerance(self, solver: Any, matrix: Callable) -> None:
        A, b = matrix(8, (2,), definite=True), torch.randn(2, 8, dtype=torch.float64)
        result = solver.factorize(Dense(A)).iterate(b, rtol=0.0, atol=1e3)
        assert result.steps.tolist() == [0, 0]
        assert result.converged.all()
        assert solver.factorize(Dense(A)).iterate(b, rtol=0.0, atol=1e-6).residual_norm.max() <= 1e-6


@pytest.mark.parametrize("solver", KRYLOV, ids=repr)
def test_products_are_counted(solver: Any, matrix: Callable) -> None:
    calls = []
    A = matrix(6, definite=True)

    class Counted(MatrixFree):
        def apply(self, x: Tensor, adjoint: bool = False) -> Tensor:
            calls.append(1)
            return super().apply(x, adjoint)

    operator = Counted(lambda x: A @ x, n=6, dtype=A.dtype)
    result = solver.factorize(operator).iterate(torch.randn(6, dtype=A.dtype))
    assert result.products == len(calls) > 0


@pytest.mark.parametrize("solver", KRYLOV, ids=repr)
def test_steps_are_limited(solver: Any, matrix: Callable) -> None:
    A, b = matrix(20, definite=True), torch.randn(20, dtype=torch.float64)
    for limit in (0, 1, 4):
        result = solver.factorize(Dense(A)).iterate(b, rtol=1e-14, max_steps=limit)
        assert result.steps.item() == limit
        assert not result.converged


@pytest.mark.parametrize("solver", [CG(), GMRES(), MINRES()], ids=repr)
def test_exact_in_n_steps(solver: Any, matrix: Callable) -> None:
    """The Krylov space of n dimensions holds the solution; of as many as A has distinct eigenvalues, too."""
    A, b = matrix(7, definite=True), torch.randn(7, dtype=torch.float64)
    result = solver.factorize(Dense(A)).iterate(b, rtol=1e-12)
    assert result.converged
    assert result.steps <= 8
    few = torch.diag(torch.tensor([1.0, 1, 1, 5, 5, 9, 9], dtype=torch.float64))
    result = solver.factorize(Dense(few)).iterate(b, rtol=1e-12)
    assert result.converged
    assert result.steps == 3


def test_gmres_residual_is_the_smallest_in_the_krylov_space(matrix: Callable) -> None:
    A, b = matrix(10), torch.randn(10, dtype=torch.float64)
    for k in range(1, 6):
        K = torch.stack([torch.linalg.matrix_power(A, i) @ b for i in range(k)], -1)
        smallest = torch.linalg.vector_norm(b - A @ K @ torch.linalg.lstsq(A @ K, b.unsqueeze(-1)).solution[:, 0])
        result = GMRES().factorize(Dense(A)).iterate(b, rtol=1e-15, max_steps=k)
        torch.testing.assert_close(result.residual_norm, smallest)


def test_gmres_solves_the_cyclic_shift(close: Callable) -> None:
    """No progress before step n (Saad 2003, section 6.11.4): a restart would never solve it, the full space does."""
    A = torch.eye(5, dtype=torch.float64).roll(1, 0)
    b = torch.eye(5, dtype=torch.float64)[0]
    result = GMRES().factorize(Dense(A)).iterate(b)
    close(result.x, torch.linalg.solve(A, b))
    assert result.steps == 5
    short = GMRES(restart=2).factorize(Dense(A)).iterate(b)
    assert not short.converged
    assert short.steps <= 2  # and it stops at once: a restart would repeat itself


def test_singular_but_consistent_system_is_solved() -> None:
    A = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))
    b = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    for solver in (GMRES(), CG(), BiCGStab()):
        result = solver.factorize(Dense(A)).iterate(b)
        assert result.converged
        torch.testing.assert_close(result.x, torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))


def test_cg_says_that_a_matrix_is_indefinite() -> None:
    A = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    result = CG().factorize(Dense(A)).iterate(torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert result.breakdown
    assert not result.converged


@torch.no_grad()
def test_cg_keeps_the_best_x_where_it_breaks_down_of_one_system_as_of_many() -> None:
    """Before it meets the negative eigenvalue it may pass close by a zero one, and its residual grow beyond that of x = 0."""
    D = torch.diag(torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, -0.05], dtype=torch.float64))
    worse = 0
    for seed in range(25):
        generator = torch.Generator().manual_seed(seed)
        Q, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=generator))
        A, b = Q @ D @ Q.mT, torch.randn(6, dtype=torch.float64, generator=generator)
        one = CG().factorize(Dense(A)).iterate(b)
        two = CG().factorize(Dense(A)).iterate(torch.stack([b, b]))
        assert bool(one.breakdown) == bool(two.breakdown[0])
        left = torch.linalg.vector_norm(b - A @ one.x)
        torch.testing.assert_close(left, torch.linalg.vector_norm(b - A @ two.x[0]), rtol=1e-6, atol=1e-9)
        worse += bool(one.breakdown)
    assert worse > 10


def uneven(n: int) -> Tensor:
    """A definite matrix of unknowns in different units: the residual of CG grows in its first steps."""
    R = torch.randn(n, n, dtype=torch.float64)
    units = torch.logspace(0, 2, n, dtype=torch.float64)
    return units[:, None] * (torch.eye(n, dtype=torch.float64) + 0.2 * R @ R.T / n) * units


@pytest.mark.parametrize("batch", [(), (2,)])  # one system has code of its own
@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_cg_cut_off_has_the_smallest_energy_in_the_krylov_space_and_says_that_it_was(k: int, batch: Any) -> None:
    A, b = uneven(20), torch.randn(20, dtype=torch.float64)
    K = torch.linalg.qr(torch.stack([torch.linalg.matrix_power(A / A.max(), i) @ b for i in range(k)], -1))[0]
    nearest = K @ torch.linalg.solve(K.T @ A @ K, K.T @ b)
    result = CG(max_steps=k).factorize(Dense(A.expand(*batch, 20, 20))).iterate(b.expand(*batch, 20), rtol=1e-10)
    torch.testing.assert_close(result.x, nearest.expand(*batch, 20), rtol=1e-5, atol=1e-9)
    assert result.exhausted.all()
    assert not (result.converged | result.breakdown).any()
    assert (linear_status(result) == Status.MAX_STEPS).all()


@pytest.mark.parametrize("solver", [CG(), MINRES(), GMRES(), BiCGStab(), LSMR()], ids=repr)
def test_a_step_limit_that_is_too_small_is_named_as_the_cause(solver: Any) -> None:
    A, b = uneven(20), torch.randn(2, 20, dtype=torch.float64)
    for k in (1, 3):
        result = solver.factorize(Dense(A)).iterate(b, rtol=1e-12, max_steps=k)
        assert (linear_status(result) == Status.MAX_STEPS).all()
        assert (result.steps == k).all()


@pytest.mark.parametrize("inner", [CG(max_steps=5), CG(preconditioner=Jacobi(), max_steps=1)], ids=repr)
def test_a_few_steps_of_cg_precondition_gmres(inner: Any) -> None:
    A, b = uneven(20), torch.randn(20, dtype=torch.float64)
    assert inner.factorize(Dense(A)).iterate(b).residual_norm > torch.linalg.vector_norm(b)  # yet it is no zero
    result = GMRES(preconditioner=inner).factorize(Dense(A)).iterate(b, rtol=1e-10)
    assert result.converged
    torch.testing.assert_close(result.x, torch.linalg.solve(A, b), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("solver", KRYLOV, ids=repr)
def test_geometry_can_be_replaced(solver: Any, matrix: Callable) -> None:
    """Each process holds a part of every vector and sums over processes; here the parts are two halves of one."""
    calls = []

    def inner(x: Tensor, y: Tensor) -> Tensor:
        calls.append(1)
        return (x[..., :3].conj() * y[..., :3]).sum(-1) + (x[..., 3:].conj() * y[..., 3:]).sum(-1)

    geometry = Geometry(inner, lambda x: inner(x, x).real.sqrt())
    A, b = matrix(6, definite=True), torch.randn(6, dtype=torch.float64)
    sharded = type(solver)(geometry=geometry).factorize(Dense(A)).iterate(b)
    assert calls
    assert sharded.converged
    torch.testing.assert_close(sharded.x, type(solver)().factorize(Dense(A)).iterate(b).x)


@pytest.mark.parametrize("solver", EVERY, ids=repr)
def test_errors_name_the_shapes(solver: Any) -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\); expected \(\.\.\., n, n\)"):
        solver.factorize(Dense(torch.ones(2, 3)))
    state = solver.factorize(Dense(torch.eye(3).expand(2, 3, 3)))
    with pytest.raises(ValueError, match=r"b has shape \(4,\); expected \(\.\.\., 2, 3\)"):
        state.solve(torch.ones(4))
    with pytest.raises(TypeError, match=r"b has dtype torch.float64"):
        state.solve(torch.ones(3, dtype=torch.float64))
    if hasattr(state, "iterate"):
        with pytest.raises(ValueError, match=r"x0 has shape \(4,\)"):
            state.iterate(torch.ones(2, 3), x0=torch.ones(4))


def test_parameters_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"restart >= 1.*got 0"):
        GMRES(restart=0)
    with pytest.raises(ValueError, match=r"terms >= 1.*got 0"):
        Neumann(0)


@torch.no_grad()
def test_the_residual_of_cg_is_evaluated_where_rounding_may_have_a_part_in_it() -> None:
    torch.manual_seed(0)
    Q = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64)).Q
    A = Q @ torch.diag(torch.logspace(0, 2, 40, dtype=torch.float64)) @ Q.mT
    b = torch.randn(40, dtype=torch.float64)
    for rtol, evaluated in ((1e-3, 0), (1e-12, 1)):
        result = CG().factorize(Dense(A)).iterate(b, rtol=rtol)
        assert result.converged
        assert result.products == result.steps + evaluated
        torch.testing.assert_close(result.residual_norm, (b - A @ result.x).norm(), rtol=1e-3, atol=1e-14)
