"""Minima under constraints with thousands of unknowns: against closed forms, and nothing of size n² is formed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from tests.sparsity.test_problems import Largest
from torchimplicit import Constraints

D = torch.float64


def allocation(d: Tensor, p: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """z ≥ 0 with Σz = total and the smallest Σ ½dz² − pz, with the multiplier of the sum: z = max(p − ν, 0) / d."""
    order = p.argsort(descending=True)
    a, b = (1 / d)[order].cumsum(0), (p / d)[order].cumsum(0)
    nu = (b - total) / a  # if the first k are positive
    k = int((p[order] > nu).sum()) - 1
    return (p - nu[k]).clamp(min=0) / d, nu[k]


def test_an_allocation_among_thousands_is_the_closed_form() -> None:
    """5,000 unknowns, one constraint in all of them, and one in each: half of these hold."""
    n = 5000
    place = torch.arange(n, dtype=D)
    d, p = 1 + (0.3 * place).sin() / 2, (0.7 * place).cos().requires_grad_()
    total = torch.tensor(400.0, dtype=D, requires_grad=True)
    constraints = Constraints(equal=lambda z: z.sum() - total, at_most=lambda z: -z)
    with Largest() as largest:
        z, info = ti.minimize(
            lambda z: (d * z * z / 2 - p * z).sum(), torch.full((n,), 0.1, dtype=D), constraints=constraints, rtol=1e-10
        )
        loss = (z * place.sin()).sum() + info.dual.equality
        found = torch.autograd.grad(loss, (p, total))
    assert info.converged
    assert info.adjoint.converged
    expected, nu = allocation(d, p, total)
    assert 1000 < int((expected > 0).sum()) < 4000
    torch.testing.assert_close(z, expected, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(info.dual.equality, nu, rtol=1e-8, atol=0)
    torch.testing.assert_close(info.dual.inequality, (nu - p).clamp(min=0), rtol=1e-8, atol=1e-8)
    exact = torch.autograd.grad((expected * place.sin()).sum() + nu, (p, total))
    torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-9)
    assert largest.numel <= 40 * (2 * n + 1)  # unknowns and multipliers


def test_a_fit_whose_thousands_of_unknowns_add_up_to_a_total_is_the_closed_form() -> None:
    """½ Σ d² (z − y)² under Σz = total, which has every unknown: z = y − ν / d²."""
    n = 6000
    place = torch.arange(n, dtype=D)
    d, y = 1 + (0.3 * place).sin() / 2, (0.7 * place).cos().requires_grad_()
    total = torch.tensor(1.0, dtype=D, requires_grad=True)
    with Largest() as largest:
        z, info = ti.least_squares(
            lambda z: d * (z - y),
            torch.zeros(n, dtype=D),
            constraints=Constraints(equal=lambda z: z.sum() - total),
            rtol=1e-10,
        )
        loss = (z * place.sin()).sum() + info.dual.equality
        found = torch.autograd.grad(loss, (y, total))
    assert info.converged
    nu = (y.sum() - total) / (1 / d**2).sum()
    expected = y - nu / d**2
    torch.testing.assert_close(z, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(info.dual.equality, nu, rtol=1e-8, atol=0)
    exact = torch.autograd.grad((expected * place.sin()).sum() + nu, (y, total))
    torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-9)
    assert largest.numel <= 40 * (n + 1)


def test_a_chain_held_at_every_tenth_link_is_straight_between() -> None:
    """Of 10,001 heights ½ Σ (zᵢ₊₁ − zᵢ)² is smallest on straight lines; the multipliers are what the slopes change by."""
    n, step = 10_001, 10
    y = torch.arange(n // step + 1, dtype=D).mul(0.9).sin().requires_grad_()
    with Largest() as largest:
        z, info = ti.minimize(
            lambda z: z.diff().square().sum() / 2,
            torch.zeros(n, dtype=D),
            constraints=Constraints(equal=lambda z: z[::step] - y),
            rtol=1e-10,
        )
        loss = (z * torch.arange(n, dtype=D).cos()).sum() + info.dual.equality.square().sum()
        (found,) = torch.autograd.grad(loss, y)
    assert info.converged
    part = torch.arange(step, dtype=D) / step
    lines = torch.cat([(y[:-1, None] + part * y.diff()[:, None]).flatten(), y[-1:]])
    slopes = torch.nn.functional.pad(y.diff() / step, (1, 1)).diff()
    torch.testing.assert_close(z, lines, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(info.dual.equality, slopes, rtol=1e-8, atol=1e-9)
    (exact,) = torch.autograd.grad((lines * torch.arange(n, dtype=D).cos()).sum() + slopes.square().sum(), y)
    torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-8)
    assert largest.numel <= 40 * (n + len(y))


def test_curved_constraints_of_a_pair_of_unknowns_each() -> None:
    """−p·z on thousands of circles: z = p/|p| on each, with the multiplier |p|/2. The Hessian of the objective is 0."""
    k = 2000
    angle = torch.arange(k, dtype=D)
    p = torch.stack([1.5 + angle.sin(), 1.2 + (1.3 * angle).cos()], -1).requires_grad_()
    z, info = ti.minimize(
        lambda z: -(p * z).sum(),
        torch.ones(k, 2, dtype=D),
        constraints=Constraints(equal=lambda z: z.square().sum(-1) - 1),
        rtol=1e-10,
    )
    assert info.converged
    length = p.norm(dim=-1)
    torch.testing.assert_close(z, p / length.unsqueeze(-1), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(info.dual.equality, length / 2, rtol=1e-7, atol=0)
    (found,) = torch.autograd.grad(z[:, 0].sum(), p)
    (exact,) = torch.autograd.grad((p[:, 0] / length).sum(), p)
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-8)


def small(z0: Tensor, p: Tensor, sparsity: str) -> tuple[Any, ...]:
    """Not convex, with an inequality that holds and one that does not, and bounds."""
    z, info = ti.minimize(
        lambda z, p: (z[..., 1:] * z[..., :-1]).sum(-1) + (z**4).sum(-1) / 4 - (p * z).sum(-1),
        z0,
        (p,),
        bounds=(-0.5, None),
        constraints=Constraints(
            equal=lambda z, p: z[..., 0] + z[..., 3] - p[..., 0], at_most=lambda z, p: z[..., 1:3] ** 2 - 0.3
        ),
        batch_ndim=z0.ndim - 1,
        rtol=1e-12,
        sparsity=sparsity,
    )
    return z, *info.dual


def test_entries_and_dense_matrices_lead_to_the_same() -> None:
    p = torch.tensor([[0.9, 0.3, 1.4, -1.0], [0.2, -1.1, 0.4, 0.8]], dtype=D, requires_grad=True)
    z0 = torch.full((2, 4), 0.1, dtype=D)
    dense, entries = small(z0, p, "off"), small(z0, p, "detect")
    torch.testing.assert_close(entries, dense, rtol=1e-9, atol=1e-10)
    mapped = torch.vmap(lambda p: small(z0[0], p, "detect"))(p)
    torch.testing.assert_close(mapped, dense, rtol=1e-9, atol=1e-10)
    assert torch.autograd.gradcheck(
        lambda p: small(z0, p, "detect")[:3], (p,), fast_mode=True, check_undefined_grad=False
    )


def test_matrices_that_are_dense_and_too_large_are_refused_with_what_to_do() -> None:
    one = Constraints(equal=lambda z: z[0] - 1)
    with pytest.raises(ValueError, match=r"5000 unknowns.*5001 × 5001.*few unknowns act on each other"):
        ti.minimize(lambda z: z.sum() ** 2 + z.square().sum(), torch.zeros(5000), constraints=one)
    with pytest.raises(ValueError, match="sparsity='off'"):
        ti.minimize(lambda z: z.square().sum(), torch.zeros(5000), constraints=one, sparsity="off")
