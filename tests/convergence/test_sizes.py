"""Equations and unknowns of very different sizes: carbonic acid in water, whose ions are 1e-10 beside 1e-3, by bisection."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import torchimplicit as ti

from ..loop.test_counts import Operations
from .outcomes import D, S

log_K = torch.log(torch.tensor([10**-6.35, 10**-10.33, 1e-14], dtype=D))


def equilibrium(z: Tensor, log_K: Tensor, carbon: Tensor, alkalinity: Tensor) -> Tensor:
    """Three laws of mass action, whose terms are 1e-7 and less beside those of the two balances."""
    H, OH, C, B, A = z.unbind(-1)
    K1, K2, Kw = log_K.exp().unbind(-1)
    laws = [H * B - K1 * C, H * A - K2 * B, H * OH - Kw]
    return torch.stack([*laws, C + B + A - carbon, B + 2 * A + OH - H - alkalinity], -1)


def exact(log_K: Tensor, carbon: Tensor, alkalinity: Tensor) -> Tensor:
    K1, K2, Kw = log_K.exp()

    def of(h: Tensor) -> tuple[Tensor, ...]:
        share = carbon / (h * h + K1 * h + K1 * K2)
        return h, Kw / h, share * h * h, share * K1 * h, share * K1 * K2

    low, high = torch.full_like(carbon, -46.0), torch.full_like(carbon, 2.0)
    for _ in range(100):
        middle = (low + high) / 2
        H, OH, _, B, A = of(middle.exp())
        above = B + 2 * A + OH - H > alkalinity
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return torch.stack(of(((low + high) / 2).exp()), -1)


def waters(dtype: torch.dtype, number: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    carbon = 10 ** (-5 + 3 * torch.rand(number, dtype=D, generator=draw))
    alkalinity = carbon * (0.05 + 2 * torch.rand(number, dtype=D, generator=draw))
    return log_K.to(dtype), carbon.to(dtype), alkalinity.to(dtype)


@pytest.mark.parametrize("start", [1e-7, 1e-3])
@pytest.mark.parametrize("dtype", [S, D])
@pytest.mark.parametrize("solver", [None, "newton"])
def test_what_has_converged_is_within_its_tolerance(solver: str | None, dtype: torch.dtype, start: float) -> None:
    args = waters(dtype, 100)
    z, info = ti.root(
        equilibrium,
        torch.full((100, 5), start, dtype=dtype),
        args,
        batch_ndim=1,
        batched=(False, True, True),
        solver=solver,
    )
    assert info.converged.all()
    right = exact(*(t.double() for t in args))
    error, eps = (z.double() - right).abs().amax(-1), torch.finfo(dtype).eps
    allowed = eps + eps**0.5 * right.square().mean(-1).sqrt()
    assert (error <= 2 * allowed).all()
    assert (error <= 2 * info.error.double() + 10 * eps * right.amax(-1)).all()  # and it is told as it is


def test_its_derivative_is_that_of_differences() -> None:
    constants, carbon, alkalinity = waters(D, 20)
    constants.requires_grad_()
    z, info = ti.root(
        equilibrium, torch.full((20, 5), 1e-7, dtype=D), (constants, carbon, alkalinity), batch_ndim=1, rtol=1e-13
    )
    (found,) = torch.autograd.grad(z[:, 2].sum(), constants)
    assert info.adjoint is not None
    assert info.adjoint.converged.all()
    moves = 1e-5 * torch.eye(3, dtype=D)
    beside = [[exact(log_K + s * m, carbon, alkalinity)[:, 2].sum() for s in (1, -1)] for m in moves]
    differences = torch.stack([(after - before) / 2e-5 for after, before in beside])
    assert torch.allclose(found, differences, rtol=1e-6, atol=0)


def test_the_backward_takes_the_factors_at_the_root_in_whatever_units() -> None:
    """Factors of rows 1e14 apart tell nothing until they are scaled; the forward has scaled them, and the backward makes none."""
    n, draw = 12, torch.Generator().manual_seed(0)
    A = 2 * torch.eye(n, dtype=D) + torch.randn(n, n, dtype=D, generator=draw) / n**0.5
    x = torch.randn(n, dtype=D, generator=draw).requires_grad_()
    unit = torch.logspace(0, 14, n, dtype=D)
    z, info = ti.root(lambda z: unit * (A @ z + torch.sin(z) / 10 - x), torch.zeros(n, dtype=D), solver="newton")
    with Operations() as operations:
        (found,) = torch.autograd.grad(z.sum(), x)
    assert not [name for name in operations.counts if "lu_factor" in name]
    assert info.adjoint is not None
    assert int(info.adjoint.products) == 1
    J = A + torch.diag(z.detach().cos() / 10)
    torch.testing.assert_close(found, torch.linalg.solve(J.mT, torch.ones(n, dtype=D)), rtol=1e-9, atol=0)
