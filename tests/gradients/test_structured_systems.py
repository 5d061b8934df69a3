"""``linear_solve`` with every kind of operator: value and derivatives of every kind are those of dense linear algebra."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import torchimplicit as ti

from ..linear.structured import CASES, N

TIGHT = {"rtol": 1e-13}
DTYPES = [torch.float64, torch.complex128]
every_kind = pytest.mark.parametrize("kind", CASES)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def solved(kind: str, solver: object = None) -> Callable[..., Tensor]:
    return lambda b, *tensors: ti.linear_solve(CASES[kind].operator(*tensors), b, solver=solver, **TIGHT).value


def exact(kind: str) -> Callable[..., Tensor]:
    def f(b: Tensor, *tensors: Tensor) -> Tensor:
        A = CASES[kind].dense(*tensors)
        A, b = A.expand(*torch.broadcast_shapes(A.shape[:-2], b.shape[:-1]), N, N), b.expand(*b.shape)
        return torch.linalg.solve(A, b.expand(A.shape[:-1]).unsqueeze(-1)).squeeze(-1)

    return f


def inputs(kind: str, *batch: int, lead: tuple[int, ...] = (), dtype: torch.dtype = torch.float64) -> list[Tensor]:
    tensors = CASES[kind].tensors(*batch, dtype=dtype)
    return [torch.randn(*lead, *batch, N, dtype=dtype), *tensors]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)


@pytest.mark.sampled(23)
@every_kind
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("solver", [None, ti.linear.GMRES(), ti.linear.LU()], ids=["auto", "GMRES", "LU"])
def test_values_and_gradients(
    kind: str, dtype: torch.dtype, batch: tuple[int, ...], lead: tuple[int, ...], solver: object
) -> None:
    given = [t.requires_grad_() for t in inputs(kind, *batch, lead=lead, dtype=dtype)]
    z, truth = solved(kind, solver)(*given), exact(kind)(*given)
    close(z, truth)
    v = torch.randn_like(z)
    for found, expected in zip(*(torch.autograd.grad((y * v).sum().abs(), given) for y in (z, truth)), strict=True):
        close(found, expected)


@pytest.mark.sampled(9)
@every_kind
@pytest.mark.parametrize("dtype", DTYPES)
def test_derivatives_of_both_orders_equal_finite_differences(kind: str, dtype: torch.dtype) -> None:
    given = [t.requires_grad_() for t in inputs(kind, dtype=dtype)]
    assert gradcheck(solved(kind), given, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(solved(kind), given, fast_mode=True)


@pytest.mark.sampled(4)
@every_kind
def test_every_transform(kind: str) -> None:
    many = [torch.stack(parts) for parts in zip(*(inputs(kind) for _ in range(3)), strict=True)]
    one = [t[0] for t in many]
    dims = (0, *(None for _ in one[1:]))
    f, g = solved(kind), exact(kind)

    def loss(h: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *given: h(*given).square().sum()

    for transform in (
        lambda h: torch.vmap(h)(*many),
        lambda h: torch.vmap(h, dims)(many[0], *one[1:]),
        lambda h: torch.vmap(h, tuple(None if d == 0 else 0 for d in dims))(one[0], *many[1:]),
        lambda h: torch.vmap(torch.vmap(h, dims), (None, *(0 for _ in one[1:])))(*many),
        lambda h: torch.vmap(torch.func.grad(loss(h), 1))(*many),
        lambda h: torch.func.jacrev(h, 0)(*one),
        lambda h: torch.func.jacfwd(h, 1)(*one),
        lambda h: torch.func.hessian(loss(h), 1)(*one),
        lambda h: torch.func.jacrev(torch.vmap(h), 1)(*many),
        lambda h: torch.func.jvp(h, tuple(one), tuple(t[1] for t in many))[1],
    ):
        close(transform(f), transform(g))
