"""Preconditioners by name: each saves steps, forward and backward, and leaves solution and gradient as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import sparse
from torch import Tensor

import torchimplicit as ti
from torchimplicit.linear import (
    AMG,
    CG,
    GMRES,
    ILU,
    MINRES,
    BiCGStab,
    Dense,
    Diagonal,
    Jacobi,
    Lagged,
    MatrixFree,
    Sparse,
    SparseCholesky,
    SparseLU,
)

m = 12
n = m * m


def mesh(wind: float = 0.0) -> Any:
    """A Laplacian, with wind along one side, its unknowns in different units."""
    line = sparse.diags_array([-1.0 - wind, 2.0, -1.0 + wind], offsets=[-1, 0, 1], shape=(m, m))
    units = sparse.diags_array(torch.logspace(-1, 1, n).double().numpy())
    A = sparse.kronsum(line, line)
    return (units @ (A + A.T * 0 + 0.01 * sparse.eye_array(n)) @ units).tocsr()


def dense(A: Any) -> Tensor:
    return torch.from_numpy(A.toarray())


NAMED: dict[str, tuple[Any, Any, float]] = {  # the preconditioner, a solver that it suits, and the wind
    "Jacobi": (Jacobi(), CG, 0.0),
    "block Jacobi": (Jacobi(m), CG, 0.0),
    "AMG": (AMG(), CG, 0.0),
    "Cholesky": (SparseCholesky(), MINRES, 0.0),
    "ILU, Hermitian": (ILU(), CG, 0.0),
    "Diagonal": (Diagonal(dense(mesh()).diagonal().clone()), CG, 0.0),
    "Jacobi, with wind": (Jacobi(), GMRES, 0.5),
    "block Jacobi, with wind": (Jacobi(m), BiCGStab, 0.5),
    "ILU": (ILU(), GMRES, 0.5),
    "AMG, with wind": (AMG(), GMRES, 0.5),
    "LU": (SparseLU(), GMRES, 0.5),
    "lagged": (Lagged(ILU()), GMRES, 0.5),
}


@pytest.mark.parametrize("name", NAMED)
def test_it_saves_steps_in_both_directions(name: str) -> None:
    preconditioner, solver, wind = NAMED[name]
    A = mesh(wind)
    torch.manual_seed(0)
    b = torch.randn(2, n).double().requires_grad_()
    weights = torch.randn(2, n).double()
    plain = ti.linear_solve(A, b, solver=solver(max_steps=150), rtol=1e-10, on_failure="ignore")
    z, info = ti.linear_solve(A, b, solver=solver(preconditioner=preconditioner), rtol=1e-10)
    (gradient,) = torch.autograd.grad((z * weights).sum(), b)
    assert info.converged.all()
    assert info.adjoint.converged.all()
    assert info.steps.max() < 0.6 * plain.info.steps.min()
    assert info.adjoint.steps.max() <= 2 * info.steps.max() + 3
    truth = dense(A)
    torch.testing.assert_close(z, torch.linalg.solve(truth, b.T).T, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradient, torch.linalg.solve(truth.T, weights.T).T, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_blocks_are_those_on_the_diagonal(k: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    A = torch.randn(3, 12, 12, dtype=dtype)
    b = torch.randn(2, 3, 12, dtype=dtype)
    blocks = torch.stack([torch.block_diag(*(M[i : i + k, i : i + k] for i in range(0, 12, k))) for M in A])
    expected = torch.linalg.solve(blocks, b.unsqueeze(-1)).squeeze(-1)
    conjugate = torch.linalg.solve(blocks.mH, b.unsqueeze(-1)).squeeze(-1)
    rows, columns = torch.ones(12, 12).nonzero().T
    for operator in (Dense(A), Sparse(A.flatten(1), ti.linear.Pattern(rows, columns, 12, 12))):
        state = Jacobi(k).factorize(operator)
        torch.testing.assert_close(state.solve(b), expected)
        torch.testing.assert_close(state.solve(b, adjoint=True), conjugate)


def test_a_singular_block_is_left_alone() -> None:
    A = torch.diag(torch.tensor([2.0, 0.0, 4.0]))
    assert Jacobi().factorize(Dense(A)).solve(torch.ones(3)).tolist() == [0.5, 1.0, 0.25]


def test_a_matrix_without_incomplete_factors_does_no_harm() -> None:
    values = torch.tensor([[1.0, 1.0, 1.0, 1.0], [2.0, 0.0, 0.0, 4.0]]).double()  # the first is singular
    rows, columns = torch.ones(2, 2).nonzero().T
    state = ILU().factorize(Sparse(values, ti.linear.Pattern(rows, columns, 2, 2)))
    b = torch.ones(2, 2).double()
    assert state.solve(b).tolist() == [[1.0, 1.0], [0.5, 0.25]]


def test_a_callable_and_its_transpose(matrix: Callable, reference: Callable, close: Callable) -> None:
    A = matrix(20, (3,)) @ torch.diag(torch.logspace(0, 4, 20, dtype=torch.float64))
    nearby = torch.linalg.inv(A * (1 + 0.001 * torch.randn_like(A)))
    b = torch.randn(2, 3, 20, dtype=torch.float64)
    solver = GMRES(preconditioner=lambda r: (nearby @ r.unsqueeze(-1)).squeeze(-1))
    for adjoint in (False, True):
        result = solver.factorize(Dense(A)).iterate(b, adjoint, rtol=1e-12)
        assert result.converged.all()
        assert result.steps.max() <= 8
        close(result.x, reference(A, b, adjoint), tol=1e-8)


def test_a_callable_without_a_derivative_says_so() -> None:
    A = torch.eye(3) + torch.ones(3, 3).triu(1)
    solver = GMRES(preconditioner=lambda r: torch.from_numpy(r.detach().numpy() / 2))
    with pytest.raises(ValueError, match=r"preconditioner: matvec is not differentiable.*object with solve"):
        solver.factorize(Dense(A)).iterate(torch.ones(3), adjoint=True)
    wrong = GMRES(preconditioner=lambda r: r[:2])
    with pytest.raises(ValueError, match=r"preconditioner: .*same shape"):
        wrong.factorize(Dense(A)).iterate(torch.ones(3))


@pytest.mark.parametrize("named", [Jacobi(), ILU(), AMG(), Lagged(Jacobi())])
def test_what_has_no_entries_is_refused(named: Any) -> None:
    operator = MatrixFree(lambda x: 2 * x, n=3)
    with pytest.raises(TypeError, match="needs the entries of a sparse matrix, and got"):
        CG(preconditioner=named).factorize(operator)


def test_bad_parameters() -> None:
    with pytest.raises(ValueError, match="12 unknowns do not make blocks of 5"):
        Jacobi(5).factorize(Dense(torch.eye(12)))
    with pytest.raises(ValueError, match="Jacobi: block"):
        Jacobi(0)
    with pytest.raises(TypeError, match="Lagged: solver is 3"):
        Lagged(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="AMG is for real matrices"):
        AMG().factorize(Dense(torch.eye(2, dtype=torch.complex64)))


def reaction(u: Tensor, rate: Tensor) -> Tensor:
    """−Δu + u_x / 2 = rate eᵘ, with u = 0 around."""
    p = torch.nn.functional.pad(u, (1, 1, 1, 1))
    out = 4 * u - p[:-2, 1:-1] - p[2:, 1:-1] - 1.3 * p[1:-1, :-2] - 0.7 * p[1:-1, 2:]
    return out - rate * u.exp() / (m + 1) ** 2


def solve(rate: Tensor, preconditioner: Any) -> tuple[Tensor, Any]:
    inner = GMRES(preconditioner=preconditioner)
    return ti.root(
        reaction,
        torch.zeros(m, m).double(),
        (rate,),
        solver=ti.solvers.NewtonKrylov(linear_solver=inner),
        adjoint=ti.Implicit(inner),
        sparsity="detect",
        rtol=1e-11,
    )


@pytest.mark.parametrize("made", [lambda: Lagged(SparseLU()), ILU, AMG, lambda: Jacobi(m)])
def test_in_newtons_method_and_its_backward(made: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    rate = (3 + torch.rand(m, m).double()).requires_grad_()
    z, info = solve(rate, made())
    weights = torch.randn(m, m).double()
    (found,) = torch.autograd.grad((z * weights).sum(), rate)
    assert info.adjoint.converged
    J = torch.autograd.functional.jacobian(lambda u: reaction(u, rate.detach()), z.detach()).reshape(n, n)
    u = torch.linalg.solve(J.T, weights.flatten()).view(m, m)
    torch.testing.assert_close(found, u * z.detach().exp() / (m + 1) ** 2, rtol=1e-7, atol=1e-10)


def test_a_lagged_one_is_made_anew_only_where_steps_have_grown() -> None:
    lagged = Lagged(SparseLU(), patience=12)
    for rate in (3.0, 3.1, 3.2):
        solve(torch.full((m, m), rate).double(), lagged)
    assert lagged.setups == 1
    far = Lagged(SparseLU(), patience=1)
    _, info = solve(torch.full((m, m), 6.0).double(), far)
    assert 1 < far.setups <= int(info.steps)


@pytest.mark.parametrize("drop", [1e-1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("sign", [1, -1])
def test_incomplete_factors_of_a_symmetric_matrix_are_for_cg(drop: float, sign: int) -> None:
    """Whatever they leave out: symmetric, of the matrix' sign, and better than the diagonal."""
    A = sign * mesh()
    M = ILU(drop=drop).factorize(Sparse(A))
    inverse = M.solve(torch.eye(n).double())
    torch.testing.assert_close(inverse, inverse.T)
    assert (sign * torch.linalg.eigvalsh(inverse) > 0).all()
    b = torch.ones(n).double()
    steps = [
        int(ti.linear_solve(sign * A, b, solver=CG(preconditioner=how), rtol=1e-10, max_steps=500).info.steps)
        for how in (SignedInverse(M, sign), Jacobi())
    ]
    assert steps[0] < steps[1]


class SignedInverse:
    def __init__(self, of: Any, sign: int) -> None:
        self.of, self.sign = of, sign

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        return self.sign * self.of.solve(b, adjoint)
