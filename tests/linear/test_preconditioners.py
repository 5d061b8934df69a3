"""Preconditioners: fewer steps to the same solution, for A and for Aᴴ."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from scipy.sparse import csr_array
from scipy.sparse.linalg import aslinearoperator
from torch import Tensor

import torchimplicit as ti
from torchimplicit.linear import (
    CG,
    GMRES,
    LU,
    Auto,
    BiCGStab,
    Cholesky,
    Dense,
    Diagonal,
    Jacobi,
    Neumann,
    Richardson,
    as_operator,
)


@pytest.mark.parametrize("solver", [GMRES, BiCGStab, Richardson])
@pytest.mark.parametrize("adjoint", [False, True])
def test_factors_of_a_nearby_matrix_save_steps(
    solver: type, adjoint: bool, matrix: Callable, reference: Callable, close: Callable
) -> None:
    spread = 0 if solver is Richardson else 4  # its residual falls from the first step only for tame adjoints
    A = matrix(20, (3,)) @ torch.diag(torch.logspace(0, spread, 20, dtype=torch.float64))
    nearby = LU().factorize(Dense(A * (1 + 0.01 * torch.randn_like(A))))
    b = torch.randn(2, 3, 20, dtype=torch.float64)
    result = solver(preconditioner=nearby).factorize(Dense(A)).iterate(b, adjoint, rtol=1e-12)
    assert result.converged.all()
    assert result.steps.max() <= 12
    close(result.x, reference(A, b, adjoint), tol=1e-8)


def test_cg_with_a_diagonal_one(matrix: Callable, reference: Callable, close: Callable) -> None:
    A = matrix(20, definite=True)
    A = A * torch.logspace(0, 2, 20, dtype=torch.float64) * torch.logspace(0, 2, 20, dtype=torch.float64)[:, None]
    jacobi = LU().factorize(Dense(torch.diag(A.diagonal())))
    b = torch.randn(20, dtype=torch.float64)
    result = CG(preconditioner=jacobi).factorize(Dense(A)).iterate(b, rtol=1e-10, max_steps=200)
    plain = CG().factorize(Dense(A)).iterate(b, rtol=1e-10, max_steps=200)
    assert result.converged
    assert result.steps < plain.steps
    close(result.x, reference(A, b), tol=1e-5)


def test_gmres_with_one_that_changes(matrix: Callable, reference: Callable, close: Callable) -> None:
    """An iterative solver is not a fixed linear map."""
    A, b = matrix(20), torch.randn(20, dtype=torch.float64)
    result = GMRES(preconditioner=GMRES(max_steps=3)).factorize(Dense(A)).iterate(b, rtol=1e-12)
    assert result.converged
    close(result.x, reference(A, b), tol=1e-10)


def test_anything_else_is_refused() -> None:
    """Where it is given, not in the backward that it is for."""
    for solver in (CG, GMRES, Auto, partial(Neumann, 2)):
        with pytest.raises(TypeError, match=r"preconditioner is a int; expected an object with solve"):
            solver(preconditioner=3)
        with pytest.raises(TypeError, match=r"preconditioner is a class; call it: Jacobi\(\)"):
            solver(preconditioner=Jacobi)
    with pytest.raises(ValueError, match="max_steps must be an integer"):
        CG(max_steps=0.5)


def test_what_has_no_entries_names_what_needs_none() -> None:
    """The Jacobian of a dense map: the advice is tried too."""
    A = torch.eye(6, dtype=torch.float64) + 0.1 * torch.ones(6, 6, dtype=torch.float64)
    x = torch.ones(6, dtype=torch.float64, requires_grad=True)

    def gradient(preconditioner: Any, sparsity: str) -> Tensor:
        adjoint = ti.Implicit(CG(preconditioner=preconditioner))
        z, _ = ti.root(lambda z, x: A @ z - x, torch.zeros_like(x), (x,), adjoint=adjoint, sparsity=sparsity)
        return torch.autograd.grad(z[0], x)[0]

    for sparsity in ("detect", "off"):
        with pytest.raises(
            TypeError, match=r"Jacobi needs the entries of a sparse matrix.*linear.Cholesky\(\).*Diagonal"
        ):
            gradient(Jacobi(), sparsity)
    for remedy in (LU(), Cholesky(), Diagonal(A.diagonal().clone()), lambda r: r / A.diagonal()):
        torch.testing.assert_close(gradient(remedy, "off"), torch.linalg.inv(A)[0], rtol=1e-6, atol=1e-8)


def test_matrices_and_operators_of_others(matrix: Callable, reference: Callable, close: Callable) -> None:
    A = matrix(20) @ torch.diag(torch.logspace(0, 4, 20, dtype=torch.float64))
    b = torch.randn(20, dtype=torch.float64)
    nearby = A * (1 + 0.01 * torch.randn_like(A))
    inverse = aslinearoperator(torch.linalg.inv(nearby).numpy())
    for near in (nearby, nearby.to_sparse_csr(), csr_array(nearby.numpy()), as_operator(inverse).inverse):
        for adjoint in (False, True):
            result = GMRES(preconditioner=near).factorize(Dense(A)).iterate(b, adjoint, rtol=1e-12)
            assert result.converged
            assert result.steps <= 12
            close(result.x, reference(A, b, adjoint), tol=1e-8)
    with pytest.raises(TypeError, match=r"Foreign.* near A, which has no direct solve.*as_operator\(M\)\.inverse"):
        GMRES(preconditioner=inverse).factorize(Dense(A))
