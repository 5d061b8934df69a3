"""LSMR against the pseudo-inverse: tall, wide and square matrices, of full rank and not, in both directions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.linear import LSMR, Diagonal, MatrixFree, Pattern, Sparse

D = torch.float64


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def drawn(m: int, n: int, rank: int | None = None, batch: tuple[int, ...] = (), dtype: torch.dtype = D) -> Tensor:
    rank = min(m, n) if rank is None else rank
    return torch.randn(*batch, m, rank, dtype=dtype) @ torch.randn(*batch, rank, n, dtype=dtype) / rank


SHAPES = {"tall": (9, 5), "wide": (5, 9), "square": (6, 6)}


@pytest.mark.parametrize("dtype", [D, torch.complex128])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradients_are_those_of_the_pseudo_inverse(shape: str, dtype: torch.dtype) -> None:
    m, n = SHAPES[shape]
    A = drawn(m, n, dtype=dtype, batch=(3,)).requires_grad_()
    b = torch.randn(2, 3, m, dtype=dtype, requires_grad=True)
    z, info = ti.linear_solve(A, b, shortest=True, solver=LSMR(), rtol=1e-11)
    assert info.converged.all()
    truth = (torch.linalg.pinv(A) @ b.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(z, truth, rtol=1e-7, atol=1e-8)
    weights = torch.randn_like(z)
    found = torch.autograd.grad((z * weights).sum().real, (A, b))
    expected = torch.autograd.grad((truth * weights).sum().real, (A, b))
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_full_rank_it_is_the_shortest_of_the_nearest(shape: str) -> None:
    m, n = SHAPES[shape]
    A, b = drawn(m, n, rank=3), torch.randn(4, m, dtype=D)
    b = b if m >= n else (A @ torch.randn(n, 4, dtype=D)).mT
    z, info = ti.linear_solve(A, b, shortest=True, solver=LSMR(), rtol=1e-12)
    assert info.converged.all()
    torch.testing.assert_close(z, (torch.linalg.pinv(A, rtol=1e-10) @ b.mT).mT, rtol=1e-8, atol=1e-9)


def test_without_full_rank_the_derivative_is_a_failure() -> None:
    A, b = drawn(6, 6, rank=3), torch.randn(6, dtype=D).requires_grad_()
    z, info = ti.linear_solve(A, b, shortest=True, solver=LSMR(), rtol=1e-12)
    with pytest.warns(ti.ConvergenceWarning, match="derivative"):
        torch.autograd.grad(z @ torch.linalg.svd(A).Vh[-1], b)
    assert not info.adjoint.converged


def test_a_singular_system_without_a_solution_is_an_error_by_choice() -> None:
    A, b = drawn(6, 6, rank=3), torch.randn(6, dtype=D)
    assert not ti.linear_solve(A, b, solver=LSMR(), on_failure="ignore").info.converged
    consistent = A @ torch.randn(6, dtype=D)
    z, info = ti.linear_solve(A, consistent, solver=LSMR(), rtol=1e-12)
    assert info.converged
    torch.testing.assert_close(z, torch.linalg.pinv(A, rtol=1e-10) @ consistent, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("adjoint", [False, True])
def test_a_square_system_by_products_alone(adjoint: bool) -> None:
    A = torch.eye(30, dtype=D) * 2 + torch.randn(30, 30, dtype=D) / 10
    b = torch.randn(2, 30, dtype=D)
    operator = MatrixFree(lambda x: A @ x, n=30, dtype=D)
    result = LSMR().factorize(operator).iterate(b, adjoint, rtol=1e-12)
    assert result.converged.all()
    assert result.products >= 2 * result.steps.max()
    torch.testing.assert_close(result.x, torch.linalg.solve(A.T if adjoint else A, b.mT).mT, rtol=1e-9, atol=1e-10)


def test_second_derivatives_vmap_and_jvp() -> None:
    A, b = drawn(7, 4), torch.randn(3, 7, dtype=D)

    def solve(A: Tensor, b: Tensor) -> Tensor:
        return ti.linear_solve(A, b, shortest=True, solver=LSMR(max_steps=60), rtol=1e-13).value

    def truth(A: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.pinv(A) @ b

    torch.testing.assert_close(torch.vmap(solve, (None, 0))(A, b), torch.vmap(truth, (None, 0))(A, b))
    tangents = (torch.randn_like(A), torch.randn(7, dtype=D))
    found, expected = (torch.func.jvp(f, (A, b[0]), tangents)[1] for f in (solve, truth))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)

    def curvature(f: Any) -> Tensor:
        A_ = A.clone().requires_grad_()
        (g,) = torch.autograd.grad(f(A_, b[0]).square().sum(), A_, create_graph=True)
        return torch.autograd.grad((g * tangents[0]).sum(), A_)[0]

    torch.testing.assert_close(curvature(solve), curvature(truth), rtol=1e-6, atol=1e-8)


def test_nothing_of_size_n_squared_and_a_preconditioner_is_refused() -> None:
    m, n = 100_000, 50_000
    i = torch.arange(m)
    values = (1 + torch.rand(m, dtype=D)).requires_grad_()
    A = Sparse(values, Pattern(i, i % n, m, n))
    b = torch.randn(m, dtype=D)
    z, info = ti.linear_solve(A, b, shortest=True, solver=LSMR(), rtol=1e-11)
    assert info.converged
    a, b = values.detach().view(2, n), b.view(2, n)
    torch.testing.assert_close(z.detach(), (a * b).sum(0) / a.square().sum(0), rtol=1e-8, atol=1e-9)
    with pytest.raises(TypeError, match="LSMR takes no preconditioner"):
        LSMR(preconditioner=Diagonal(torch.ones(2)))
