"""Factors of sparse matrices by each of the libraries, against dense linear algebra."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.linear import Dense, Diagonal, Pattern, Sparse, SparseCholesky, SparseLU
from torchimplicit.linear.best_factors import best_factors
from torchimplicit.linear.sparse_factors import installed

n = 12
SOLVERS: dict[str, Any] = {
    "SuperLU": SparseLU(),
    "UMFPACK": SparseLU("umfpack"),
    "KLU": SparseLU("klu"),
    "CHOLMOD": SparseCholesky(),
}
if installed("pypardiso"):  # MKL is large: it is in no environment of this repository
    SOLVERS["PARDISO"] = SparseLU("pardiso")


def places() -> Pattern:
    """Some places beside the diagonal, and those across from them."""
    occupied = torch.rand(n, n) < 0.2
    occupied = occupied | occupied.T | torch.eye(n, dtype=torch.bool)
    return Pattern(*occupied.nonzero().T, n, n)


def matrices(pattern: Pattern, dtype: torch.dtype, definite: bool, batch: tuple[int, ...] = ()) -> Tensor:
    """Diagonally dominant ones, their rows and columns in different units, (*batch, n, n)."""
    A = torch.zeros(*batch, n, n, dtype=dtype)
    A[..., pattern.rows, pattern.columns] = torch.randn(*batch, len(pattern.rows), dtype=dtype)
    A = A + A.mH if definite else A
    A = A - torch.diag_embed(A.diagonal(dim1=-2, dim2=-1)) + torch.diag_embed(2 + A.abs().sum(-1))
    units = torch.logspace(-1, 1, n, dtype=torch.float64).to(dtype)
    return units.unsqueeze(-1) * A * units


def entries(A: Tensor, pattern: Pattern) -> Tensor:
    return A[..., pattern.rows, pattern.columns]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_batch_is_solved_in_both_directions(
    name: str, dtype: torch.dtype, reference: Callable, close: Callable
) -> None:
    pattern = places()
    A = matrices(pattern, dtype, name == "CHOLMOD", (2, 3))
    if name == "PARDISO" and dtype.is_complex:
        with pytest.raises(TypeError, match=r"PARDISO takes real matrices.*complex128.*SparseLU\('umfpack'\)"):
            SOLVERS[name].factorize(Sparse(entries(A, pattern), pattern))
        return
    state = SOLVERS[name].factorize(Sparse(entries(A, pattern), pattern))
    assert state.title == name
    assert not state.singular.any()
    b = torch.randn(4, 2, 3, n, dtype=dtype)
    close(state.solve(b), reference(A, b))
    close(state.solve(b, adjoint=True), reference(A, b, adjoint=True))
    close(SOLVERS[name].factorize(Sparse(entries(A, pattern), pattern).H).solve(b), reference(A, b, adjoint=True))


@pytest.mark.parametrize("name", SOLVERS)
def test_value_and_gradient_of_a_linear_solve(name: str) -> None:
    pattern = places()
    A = matrices(pattern, torch.float64, name == "CHOLMOD").requires_grad_()
    b = torch.randn(3, n, dtype=torch.float64, requires_grad=True)
    operator = Sparse(entries(A, pattern), pattern)
    z, info = ti.linear_solve(operator, b, solver=SOLVERS[name], rtol=1e-12)
    weights = torch.randn(3, n, dtype=torch.float64)
    found = torch.autograd.grad((z * weights).sum(), (A, b))
    assert info.adjoint.converged.all()
    truth = torch.linalg.solve(A, b.mT).mT
    expected = torch.autograd.grad((truth * weights).sum(), (A, b))
    torch.testing.assert_close(z, truth, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(entries(found[0], pattern), entries(expected[0], pattern), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SOLVERS)
def test_of_a_batch_only_the_singular_one_fails(name: str) -> None:
    pattern = places()
    A = matrices(pattern, torch.float64, name == "CHOLMOD", (3,))
    A[1, 4, :] = 0
    A[1, :, 4] = 0
    b = torch.randn(3, n, dtype=torch.float64)
    _, info = ti.linear_solve(
        Sparse(entries(A, pattern), pattern), b, solver=SOLVERS[name], rtol=1e-12, on_failure="ignore"
    )
    assert info.converged.tolist() == [True, False, True]
    assert int(info.status[1]) == ti.Status.SINGULAR


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "CHOLMOD"])
def test_newtons_method_by_factors_that_are_asked_for(name: str) -> None:
    pattern = places()
    A = matrices(pattern, torch.float64, definite=False)
    matrix = torch.zeros(n, n).double().index_put((pattern.rows, pattern.columns), entries(A, pattern)).to_sparse_csr()
    c = torch.randn(n, dtype=torch.float64, requires_grad=True)

    def g(z: Tensor, c: Tensor) -> Tensor:
        return matrix @ z + z**3 - c

    solver = ti.solvers.NewtonKrylov(linear_solver=SOLVERS[name])
    z, info = ti.root(
        g,
        torch.zeros(n, dtype=torch.float64),
        (c,),
        sparsity=matrix,
        rtol=1e-12,
        solver=solver,
        adjoint=ti.Implicit(SOLVERS[name]),
    )
    assert info.converged
    (found,) = torch.autograd.grad(z.sum(), c)
    J = A + torch.diag(3 * z.detach() ** 2)
    torch.testing.assert_close(found, torch.linalg.solve(J.T, torch.ones(n).double()), rtol=1e-9, atol=1e-12)


def test_definite_matrices_go_to_cholmod_and_others_to_superlu(reference: Callable, close: Callable) -> None:
    pattern = places()
    b = torch.randn(n, dtype=torch.float64)
    S, A = matrices(pattern, torch.float64, definite=True), matrices(pattern, torch.float64, definite=False)
    indefinite = S.clone()
    i, j = (int(place[pattern.rows != pattern.columns][0]) for place in (pattern.rows, pattern.columns))
    indefinite[i, j] = indefinite[j, i] = 10 * (S[i, i] * S[j, j]).sqrt()
    nearly = S.clone()
    nearly[i, j] *= 1 + 1e-10  # no rounding error
    for M, title in ((S, "CHOLMOD"), (-S, "CHOLMOD"), (A, "SuperLU"), (indefinite, "SuperLU"), (nearly, "SuperLU")):
        state = best_factors(entries(M, pattern), pattern)
        assert state.title == title
        close(state.solve(b), reference(M, b))
        close(state.solve(b, adjoint=True), reference(M, b, adjoint=True))
        assert not state.singular


def test_a_matrix_that_is_not_definite_has_no_cholesky_factors() -> None:
    pattern = places()
    S = -matrices(pattern, torch.float64, definite=True)
    state = SparseCholesky().factorize(Sparse(entries(S, pattern), pattern))
    assert state.singular
    assert state.solve(torch.ones(n).double()).isnan().all()


def test_what_cannot_be_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = places()
    A = Sparse(entries(matrices(pattern, torch.float64, True), pattern), pattern)
    with pytest.raises(ValueError, match="library is 'mumps'; expected one of 'superlu', 'umfpack', 'klu', 'pardiso'"):
        SparseLU("mumps")  # type: ignore[arg-type]
    for operator in (Dense(torch.eye(3)), Diagonal(torch.ones(3))):
        with pytest.raises(TypeError, match="SparseLU needs the entries of a sparse matrix, and got"):
            SparseLU().factorize(operator)
    recorded = Sparse(A.values.clone().requires_grad_(), pattern)
    with pytest.raises(TypeError, match="recorded by autograd"):
        ti.linear_solve(recorded, torch.ones(n).double(), solver=SparseLU(), adjoint=ti.Unrolled())
    monkeypatch.setattr("torchimplicit.linear.sparse_lu.installed", lambda package: package == "scipy")
    for solver, extra in (
        (SparseLU("klu"), "suitesparse"),
        (SparseCholesky(), "suitesparse"),
        (SparseLU("pardiso"), "pardiso"),
    ):
        with pytest.raises(ImportError, match=rf"pip install torchimplicit\[{extra}\]"):
            solver.factorize(A)
    assert SparseLU().factorize(A).title == "SuperLU"


def test_without_the_extra_superlu_serves_definite_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed("kvxopt")
    monkeypatch.setattr("torchimplicit.linear.best_factors.installed", lambda package: False)
    pattern = places()
    assert best_factors(entries(matrices(pattern, torch.float64, True), pattern), pattern).title == "SuperLU"
