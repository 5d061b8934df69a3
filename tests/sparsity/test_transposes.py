"""A function that multiplies by a matrix of CSR layout: its pullbacks multiply with a transpose that is put in order once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.autograd import transposes
from torchimplicit.linear import MatrixFree

n = 1100


def matrix(entries: int = 5 * n) -> tuple[Tensor, Tensor]:
    """A nonsymmetric one, dense and as CSR, whose rows add up to no more than a half."""
    A = torch.zeros(n, n).double()
    A.index_put_((torch.randint(n, (entries,)), torch.randint(n, (entries,))), torch.randn(entries).double())
    A = A / (2 * A.abs().sum(1, keepdim=True)).clamp(min=1)
    return A, A.to_sparse_csr()


@pytest.fixture(autouse=True)
def turns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A seed, and how often entries were put in order."""
    torch.manual_seed(0)
    made: list[int] = []
    turned = transposes.turned
    monkeypatch.setattr(transposes, "turned", lambda *args: made.append(1) or turned(*args))
    return made


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "@": lambda A, z: A @ z,
    "mv": torch.mv,
    "addmv": lambda A, z: torch.addmv(torch.zeros_like(z), A, z),
    "mm": lambda A, z: torch.mm(A, z.unsqueeze(-1)).squeeze(-1),
    "sparse.mm": lambda A, z: torch.sparse.mm(A, torch.stack([z, 2 * z], -1)).sum(-1) / 3,
    "addmm": lambda A, z: torch.addmm(torch.zeros(n, 1).double(), A, z.unsqueeze(-1)).squeeze(-1),
    "twice": lambda A, z: A @ (A @ z),
}


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_gradient_is_that_with_a_dense_matrix(product: str, turns: list[int]) -> None:
    dense, A = matrix()
    x = torch.randn(n).double().requires_grad_()
    z, info = ti.fixed_point(
        lambda z, x: torch.tanh(PRODUCTS[product](A, z) + x), torch.zeros(n).double(), (x,), rtol=1e-12
    )
    weights = torch.randn(n).double()
    (found,) = torch.autograd.grad((z * weights).sum(), x)
    assert len(turns) == 1
    assert info.adjoint.products > 5
    slope = (1 - z.detach() ** 2).unsqueeze(-1)
    dense = dense @ dense if product == "twice" else dense
    u = torch.linalg.solve((torch.eye(n) - slope * dense).T, weights)
    torch.testing.assert_close(found, u * slope.squeeze(-1), rtol=1e-9, atol=1e-11)


def test_of_two_matrices_each_has_its_own(turns: list[int]) -> None:
    (dense, A), (other, B) = matrix(), matrix()
    x = torch.randn(n).double().requires_grad_()
    z = ti.fixed_point(
        lambda z: A @ z + 0.5 * (B @ z) + x, torch.zeros(n).double(), rtol=1e-12, solver="anderson"
    ).value
    (found,) = torch.autograd.grad(z.sum(), x)
    assert len(turns) == 2
    u = torch.linalg.solve((torch.eye(n) - dense - 0.5 * other).T, torch.ones(n).double())
    torch.testing.assert_close(found, u, rtol=1e-8, atol=1e-11)


def test_the_second_derivative_too() -> None:
    dense, A = matrix()
    x0, v = torch.randn(n).double(), torch.randn(n).double()

    def curvature(product: Callable[[Tensor], Tensor]) -> Tensor:
        x = x0.clone().requires_grad_()
        z = ti.fixed_point(lambda z: torch.tanh(product(z) + x), torch.zeros(n).double(), rtol=1e-13).value
        (slope,) = torch.autograd.grad(z.square().sum(), x, create_graph=True)
        return torch.autograd.grad((slope * v).sum(), x)[0]

    found, truth = curvature(lambda z: A @ z), curvature(lambda z: dense @ z)
    torch.testing.assert_close(found, truth, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("how", ["the tensor that it was made of", "its values", "the matrix"])
def test_numbers_that_change_between_products_are_seen(how: str, turns: list[int]) -> None:
    """Torch notes no change of what a matrix was made of."""
    dense, A = matrix()
    values = A.values().clone()
    A = torch.sparse_csr_tensor(A.crow_indices(), A.col_indices(), values, A.shape)
    operator = MatrixFree(lambda x: A @ x, n=n, dtype=A.dtype)
    y = torch.randn(n).double()
    for _ in range(2):
        torch.testing.assert_close(operator.rmatvec(y), dense.T @ y)
    changed: dict[str, Any] = {"the tensor that it was made of": values, "its values": A.values(), "the matrix": A}
    changed[how].mul_(3)
    if how == "the tensor that it was made of":
        torch.testing.assert_close(operator.rmatvec(y), 3 * dense.T @ y)
    else:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            operator.rmatvec(y)
    assert len(turns) == (2 if how == "the tensor that it was made of" else 1)


def test_the_gradient_in_the_entries_of_the_matrix() -> None:
    dense, A = matrix()
    A = A.requires_grad_()
    z = ti.fixed_point(lambda z: A @ z + 1, torch.zeros(n).double(), rtol=1e-12).value
    (found,) = torch.autograd.grad(z.sum(), A)
    u = torch.linalg.solve((torch.eye(n) - dense).T, torch.ones(n).double())
    truth = torch.outer(u, z.detach())
    mask = dense != 0
    torch.testing.assert_close(found.to_dense()[mask], truth[mask], rtol=1e-8, atol=1e-10)


def test_small_functions_are_not_looked_through(turns: list[int]) -> None:
    A = (0.1 * torch.eye(5).double()).to_sparse_csr()
    x = torch.ones(5).double().requires_grad_()
    ti.fixed_point(lambda z: A @ z + x, torch.zeros(5).double()).value.sum().backward()
    assert not turns
    torch.testing.assert_close(x.grad, torch.full((5,), 1 / 0.9).double(), rtol=1e-7, atol=0)
