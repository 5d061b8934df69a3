"""Which constraints hold a minimum, and what its derivative is then, or that it has none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit import Constraints, Status

from .test_constraints import D, real


def test_a_constraint_that_holds_without_force_is_reported_and_not_halved() -> None:
    b = torch.zeros((), dtype=D, requires_grad=True)
    z, info = ti.minimize(
        lambda z: ((z - real(0, 1)) ** 2).sum(), real(1.0, 0.3), constraints=Constraints(at_most=lambda z: b - z[0])
    )
    assert info.converged
    with pytest.warns(ti.ConvergenceWarning, match="degenerate"):
        z[0].backward()
    assert b.grad.item() in (0.0, 1.0)


def projections(seed: int) -> tuple[Tensor, ...]:
    """A, b, 32 points v and cotangents w, for projections on {z: A z ≤ b, Σz = 0}: numbers that single precision holds too."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(8, 6, generator=generator, dtype=D)
    b = 0.3 * torch.rand(8, generator=generator, dtype=D) + 0.05
    v, w = torch.randn(2, 32, 6, generator=generator, dtype=D)
    return A.float().double(), b.float().double(), v.float().double(), w.float().double()


def by_every_active_set(A: Tensor, b: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """The projections, their Jacobians, who holds them, and the smallest multiplier or slack, each of its system."""
    M, r = torch.cat([torch.ones_like(A[:1]), A]), torch.cat([b.new_zeros(1), b])
    sets = torch.cartesian_prod(*[torch.tensor([False, True])] * len(A))
    sets = torch.cat([torch.ones_like(sets[:, :1]), sets], 1)[sets.sum(1) < A.shape[1]]
    of_sets = torch.where(sets.unsqueeze(1) & sets.unsqueeze(2), M @ M.mT, torch.eye(len(M), dtype=D))
    multipliers = torch.linalg.solve(of_sets, (sets.unsqueeze(1) * (v @ M.mT - r)).mT).mT
    z = v - multipliers @ M
    slack = r - z @ M.mT
    fits = (multipliers[..., 1:] >= -1e-12).all(-1) & (slack >= -1e-10).all(-1)
    assert (fits.sum(0) == 1).all()
    which, rows = fits.to(torch.int8).argmax(0), torch.arange(len(v))
    held = sets[which]
    of_held = torch.where(held.unsqueeze(2), M, 0)
    P = torch.eye(A.shape[1], dtype=D) - of_held.mT @ torch.linalg.solve(of_sets[which], of_held)
    margin = torch.where(held, multipliers[which, rows], slack[which, rows])[:, 1:].amin(-1)
    return z[which, rows], P, held[:, 1:], margin


@pytest.mark.parametrize(("seed", "dtype"), [(5, D), (6, D), (7, D), (0, torch.float32), (6, torch.float32)], ids=str)
def test_what_holds_a_projection_is_what_has_a_multiplier(seed: int, dtype: torch.dtype) -> None:
    """Rounding leaves nothing of the multiplier of a constraint that lies far away, and errors of z do not hide one that holds."""
    A, b, v, w = (t.to(dtype) for t in projections(seed))
    truth, P, held, margin = by_every_active_set(*projections(seed)[:3])
    single = dtype == torch.float32
    v.requires_grad_()
    z, info = ti.minimize(
        lambda z, v: (z - v).square().sum(-1) / 2,
        torch.zeros_like(v),
        (v,),
        batch_ndim=1,
        constraints=Constraints(equal=lambda z, v: z.sum(-1, keepdim=True), at_most=lambda z, v: z @ A.mT - b),
    )
    (z * w).sum().backward()
    clear = margin > (0.02 if single else 1e-6)
    assert clear.sum() > 25
    assert (info.adjoint.status[clear] == Status.CONVERGED).all()
    torch.testing.assert_close(z.detach().double(), truth, rtol=0, atol=1e-3 if single else 1e-8)
    expected = (P @ w.double().unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(v.grad.double()[clear], expected[clear], rtol=0, atol=1e-5 if single else 1e-6)
    assert ((info.dual.inequality > 0) == held)[clear].all()


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_a_constraint_is_only_touched_where_neither_its_slack_nor_its_multiplier_is_seen(unit: float) -> None:
    """The projection on 3z₁ − 4z₂ ≤ 0 of what lies by a distance outside: at ±1e-9 of z no derivative, at ±1e-3 that of its side."""
    c, along = real(0.6, -0.8), real(0.8, 0.6)
    distance = real(1e-3, 1e-9, 0, -1e-9, -1e-3)
    v = (along + distance.unsqueeze(-1) * c).requires_grad_()
    constraints = Constraints(at_most=lambda z, v: unit * (z @ c).unsqueeze(-1))
    z, info = ti.minimize(
        lambda z, v: (z - v).square().sum(-1), 0 * v.detach(), (v,), batch_ndim=1, constraints=constraints
    )
    with pytest.warns(ti.ConvergenceWarning, match="degenerate"):
        (z * real(1, 2)).sum().backward()
    expected = [Status.CONVERGED, *[Status.DEGENERATE] * 3, Status.CONVERGED]
    assert info.adjoint.status.tolist() == expected
    torch.testing.assert_close(v.grad[0], (along @ real(1, 2)) * along)
    torch.testing.assert_close(v.grad[-1], real(1, 2))


def test_what_holds_a_minimum_that_is_not_quadratic() -> None:
    """Σ (z + 2) log (z + 2) − v·z over the same sets: with D = diag (z + 2) and the constraints M that hold, dz/dv is
    D − DMᵀ (MDMᵀ)⁻¹ MD."""
    for seed in (0, 1):
        A, b, v, w = projections(seed)
        v.requires_grad_()
        z, info = ti.minimize(
            lambda z, v: (torch.special.xlogy(z + 2, z + 2) - v * z).sum(-1),
            torch.zeros_like(v),
            (v,),
            batch_ndim=1,
            constraints=Constraints(
                equal=lambda z, v: z.sum(-1, keepdim=True), at_most=lambda z, v, A=A, b=b: z @ A.mT - b
            ),
        )
        (z * w).sum().backward()
        assert (info.adjoint.status == Status.CONVERGED).all()
        held = (z.detach() @ A.mT - b) > -1e-7
        assert ((info.dual.inequality > 0) == held).all()
        for i in range(len(v)):
            M, inverse = torch.cat([torch.ones_like(A[:1]), A[held[i]]]), torch.diag(z[i].detach() + 2)
            moved = M @ inverse
            slope = inverse - moved.mT @ torch.linalg.solve(moved @ M.mT, moved)
            torch.testing.assert_close(v.grad[i], slope @ w[i], rtol=0, atol=1e-6)
