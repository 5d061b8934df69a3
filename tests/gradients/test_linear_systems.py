"""A linear system in every form: derivatives in b and in the entries of A, or in what a callable uses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import torchimplicit as ti

from .problems import randn, well

TIGHT = {"rtol": 1e-13}
DTYPES = [torch.float64, torch.complex128]
N = 4
ROWS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 0])
COLUMNS = torch.tensor([0, 2, 1, 3, 0, 2, 3, 1, 3])


def entries(dtype: torch.dtype) -> Tensor:
    return (randn(9, seed=4, dtype=dtype) / 3 + 3 * (ROWS == COLUMNS)).requires_grad_()


def csr(values: Tensor) -> Tensor:
    return dense(values).to_sparse_csr()


def coo(values: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(torch.stack([ROWS, COLUMNS]), values, (N, N))


def dense(values: Tensor) -> Tensor:
    return torch.zeros(N, N, dtype=values.dtype).index_put((ROWS, COLUMNS), values)


def by_callable(values: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda z: dense(values) @ z


def operator(values: Tensor) -> ti.linear.LinearOperator:
    return ti.linear.as_operator(dense(values))


FORMS = [dense, coo, csr, by_callable, operator]
in_every_form = pytest.mark.parametrize(  # torch cannot differentiate what makes a complex CSR tensor
    ("form", "dtype"),
    [
        pytest.param(form, dtype, id=f"{form.__name__}-{dtype}")
        for form in FORMS
        for dtype in DTYPES
        if not (form is csr and dtype.is_complex)
    ],
)
SOLVERS = [None, ti.linear.LU(), ti.linear.QR(), ti.linear.GMRES(), ti.linear.BiCGStab()]


@in_every_form
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_gradients_equal_those_of_dense_linear_algebra(form: Callable, dtype: torch.dtype, solver: object) -> None:
    values, b = entries(dtype), randn(N, seed=6, dtype=dtype).requires_grad_()
    v = randn(N, seed=7, dtype=dtype)
    z = ti.linear_solve(form(values), b, solver=solver, **TIGHT).value
    exact = torch.linalg.solve(dense(values), b)
    assert torch.allclose(z, exact)
    found = torch.autograd.grad((z * v).abs().square().sum(), (values, b))
    expected = torch.autograd.grad((exact * v).abs().square().sum(), (values, b))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-9)


@pytest.mark.sampled(5)
@in_every_form
def test_derivatives_of_both_orders_equal_finite_differences(form: Callable, dtype: torch.dtype) -> None:
    inputs = (entries(dtype), randn(N, seed=6, dtype=dtype).requires_grad_())

    def f(values: Tensor, b: Tensor) -> Tensor:
        return ti.linear_solve(form(values), b, **TIGHT).value

    strided = form not in (
        coo,
        csr,
    )  # torch has no forward mode for the construction of these, nor a direction at random
    assert gradcheck(f, inputs, check_forward_ad=strided, fast_mode=strided)
    assert gradgradcheck(f, inputs, fast_mode=strided)


BATCHES = [((), (2,)), ((2,), ()), ((2,), (2,)), ((3, 1), (2,)), ((2,), (3, 1)), ((2, 3), (2, 3)), ((), (0,))]


@pytest.mark.parametrize(("matrices", "vectors"), BATCHES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", [None, ti.linear.GMRES()], ids=["auto", "GMRES"])
def test_batches_broadcast_and_gradients_sum_over_them(
    matrices: tuple[int, ...], vectors: tuple[int, ...], dtype: torch.dtype, solver: object
) -> None:
    A = (randn(*matrices, 3, 3, seed=1, dtype=dtype) / 3 + 2 * torch.eye(3)).requires_grad_()
    b = randn(*vectors, 3, seed=2, dtype=dtype).requires_grad_()
    z = ti.linear_solve(A, b, solver=solver, **TIGHT).value
    exact = torch.linalg.solve(A, b.unsqueeze(-1).expand(*torch.broadcast_shapes(matrices, vectors), 3, 1)).squeeze(-1)
    assert z.shape == exact.shape
    v = randn(*z.shape, seed=3, dtype=dtype)
    found = torch.autograd.grad((z * v).sum().abs(), (A, b))
    expected = torch.autograd.grad((exact * v).sum().abs(), (A, b))
    for one, other in zip((z, *found), (exact, *expected), strict=True):
        assert torch.allclose(one, other, atol=1e-10)


@pytest.mark.parametrize("form", [dense, by_callable, operator], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", DTYPES)
def test_inside_transforms(form: Callable, dtype: torch.dtype) -> None:
    values, b = entries(dtype).detach(), randn(N, seed=6, dtype=dtype)

    def loss(values: Tensor, b: Tensor) -> Tensor:
        return ti.linear_solve(form(values), b, **TIGHT).value.abs().square().sum()

    def exact(values: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.solve(dense(values), b).abs().square().sum()

    for argnums in (0, 1):
        found = torch.func.grad(loss, argnums)(values, b)
        assert torch.allclose(found, torch.func.grad(exact, argnums)(values, b), atol=1e-9)
    bs = torch.stack([b, 2 * b.flip(0)])
    found = torch.vmap(torch.func.grad(loss), (None, 0))(values, bs)
    assert torch.allclose(found, torch.vmap(torch.func.grad(exact), (None, 0))(values, bs), atol=1e-9)
    many = torch.stack([values, values + 0.1])
    found = torch.vmap(torch.vmap(loss, (None, 0)), (0, None))(many, bs)
    assert torch.allclose(found, torch.vmap(torch.vmap(exact, (None, 0)), (0, None))(many, bs), atol=1e-9)


def test_a_non_leaf_matrix_and_a_non_holomorphic_callable_are_differentiated() -> None:
    """z -> a z + c conj(z) is linear over the reals only."""
    a = torch.tensor(2 + 0.5j, dtype=torch.complex128, requires_grad=True)
    b = randn(3, seed=2, dtype=torch.complex128).requires_grad_()

    def f(a: Tensor, b: Tensor) -> Tensor:
        c = a.sin() / 3
        return ti.root(lambda z: a * z + c * z.conj().flip(0) - b, torch.zeros_like(b), **TIGHT).value

    assert gradcheck(f, (a, b), check_forward_ad=True)
    assert gradgradcheck(f, (a, b), fast_mode=True)


@pytest.mark.parametrize("n", [63, 64, 65, 66])
@pytest.mark.parametrize("dtype", DTYPES)
def test_around_the_limit_of_dense_factors(n: int, dtype: torch.dtype) -> None:
    W = (randn(n, n, seed=n, dtype=dtype) / (3 * n**0.5)).requires_grad_()
    b = randn(n, seed=n + 1, dtype=dtype).requires_grad_()
    z = ti.linear_solve(lambda z: 2 * z - W @ z, b, rtol=1e-11).value
    exact = torch.linalg.solve(2 * torch.eye(n) - W, b)
    found = torch.autograd.grad(z.abs().square().sum(), (W, b))
    expected = torch.autograd.grad(exact.abs().square().sum(), (W, b))
    for one, other in zip((z, *found), (exact, *expected), strict=True):
        assert torch.allclose(one, other, atol=1e-8)


def test_well_conditioned_systems_are_asymmetric() -> None:
    assert not torch.allclose(well(N), well(N).T, atol=0.1)
    assert not torch.allclose(dense(entries(torch.float64)), dense(entries(torch.float64)).T, atol=0.1)
