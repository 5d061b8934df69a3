"""Robust losses against SciPy's, against their formulas, and their gradients against differences."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import least_squares
from torch import Tensor

import torchimplicit as ti
from torchimplicit.problems.losses import LOSSES

D = torch.float64
ROBUST = ["huber", "soft_l1", "cauchy"]
T = torch.linspace(0, 3, 30, dtype=D)
RHO = {
    "linear": lambda s: s,
    "huber": lambda s: s if s <= 1 else 2 * math.sqrt(s) - 1,
    "soft_l1": lambda s: 2 * s / (math.sqrt(1 + s) + 1),  # 2(√(1 + s) − 1) without its cancellation
    "cauchy": lambda s: math.log1p(s),
}


def observations() -> Tensor:
    """A decay with noise, and three outliers."""
    noise = torch.randn(30, dtype=D, generator=torch.Generator().manual_seed(0))
    y = 2 * torch.exp(-1.3 * T) + 0.5 + 0.02 * noise
    y[[4, 15, 26]] += torch.tensor([3.0, -2.0, 4.0], dtype=D)
    return y


def r(z: Tensor, y: Tensor) -> Tensor:
    a, b, c = z[..., None].unbind(-2)
    return a * torch.exp(-b * T) + c - y


@pytest.mark.parametrize("loss", LOSSES)
def test_half_the_square_of_what_replaces_a_residual_is_half_its_loss(loss: str) -> None:
    residuals = torch.tensor([-40.0, -1.0, -0.3, -1e-4, 0, 1e-9, 0.0999, 0.1001, 0.7, 1.5, 1e4], dtype=D)
    expected = torch.tensor([RHO[loss](float(x) ** 2) for x in residuals], dtype=D)
    assert torch.allclose(LOSSES[loss](residuals).square(), expected, rtol=1e-13, atol=0)
    inside = residuals[residuals.abs() != 1].requires_grad_()  # Huber's second derivative jumps at 1
    assert torch.autograd.gradcheck(LOSSES[loss], inside)
    assert torch.autograd.gradgradcheck(LOSSES[loss], inside)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("f_scale", [0.1, 1.0])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_fit_is_that_of_scipy(loss: str, f_scale: float) -> None:
    y, start = observations(), torch.tensor([1.0, 1.0, 0.0], dtype=D)
    theirs = least_squares(
        lambda z: r(torch.as_tensor(z), y).numpy(),
        start.numpy(),
        jac=lambda z: torch.func.jacrev(r)(torch.as_tensor(z), y).numpy(),
        loss=loss,
        f_scale=f_scale,
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-13,
    )
    z, info = ti.least_squares(r, start, (y,), loss=loss, f_scale=f_scale, rtol=1e-11)
    assert info.converged
    assert torch.allclose(z, torch.as_tensor(theirs.x), rtol=1e-6)
    cost = sum(f_scale**2 * RHO[loss](float(x / f_scale) ** 2) for x in r(z, y)) / 2
    assert cost <= theirs.cost * (1 + 1e-12)


@pytest.mark.parametrize("loss", ROBUST)
def test_a_robust_fit_passes_by_outliers(loss: str) -> None:
    z = ti.least_squares(r, torch.tensor([1.0, 1.0, 0.0], dtype=D), (observations(),), loss=loss, f_scale=0.05).value
    assert torch.allclose(z, torch.tensor([2, 1.3, 0.5], dtype=D), atol=0.1)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("loss", ROBUST)
def test_the_gradient_is_that_of_differences_to_second_order(loss: str) -> None:
    y = observations().requires_grad_()
    start = torch.tensor([2.0, 1.3, 0.5], dtype=D)

    def fit(y: Tensor) -> Tensor:
        return ti.least_squares(r, start, (y,), loss=loss, f_scale=0.5, rtol=1e-13, on_failure="ignore").value

    assert torch.autograd.gradcheck(fit, y, atol=1e-7, rtol=1e-5, fast_mode=True)
    assert torch.autograd.gradgradcheck(fit, y, atol=1e-5, rtol=1e-4, fast_mode=True)


@pytest.mark.parametrize("solver", ["levenberg_marquardt", "gauss_newton", "dogleg"])
@pytest.mark.parametrize(("dtype", "outlier"), [(torch.float32, 1e6), (torch.float32, 1e8), (D, 1e12), (D, 1e16)])
def test_a_huge_outlier_hides_nothing_of_the_other_residuals(solver: str, dtype: torch.dtype, outlier: float) -> None:
    """Five numbers within 1 of the location pull with their distance and the outlier with 1: their mean and a fifth."""
    y = torch.tensor([4.0, 5.0, 4.5, 4.0, 5.0, outlier], dtype=dtype)
    start = torch.tensor([0.0, 10.0, 100.0], dtype=dtype)
    z, info = ti.least_squares(lambda z: z.unsqueeze(-1) - y, start, loss="huber", solver=solver, batch_ndim=1)
    assert info.converged.all()
    assert torch.allclose(z, torch.full_like(z, 4.7), rtol=3 * torch.finfo(dtype).eps ** 0.5)


def test_losses_keep_to_bounds_and_batches() -> None:
    y = torch.stack([observations(), observations() / 2, observations() + 1])
    start = torch.tensor([1.0, 1.0, 0.0], dtype=D).expand(3, 3)
    together = ti.least_squares(r, start, (y,), loss="soft_l1", f_scale=0.1, batch_ndim=1).value
    for i in range(3):
        assert torch.allclose(together[i], ti.least_squares(r, start[i], (y[i],), loss="soft_l1", f_scale=0.1).value)
    held = ti.least_squares(r, start[0], (y[0],), bounds=(None, 1.0), loss="soft_l1", f_scale=0.1).value
    assert held[0] == 1
    theirs = least_squares(
        lambda z: r(torch.as_tensor(z), y[0]).numpy(),
        [0.9, 0.9, 0.0],
        bounds=([-torch.inf] * 3, [1.0] * 3),
        loss="soft_l1",
        f_scale=0.1,
        xtol=1e-14,
        gtol=1e-12,
    )
    assert torch.allclose(held, torch.as_tensor(theirs.x), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"loss": "l1"}, "'linear', 'huber', 'soft_l1', 'cauchy'"), ({"loss": "huber", "f_scale": 0}, "f_scale > 0")],
)
def test_what_does_not_fit_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ti.least_squares(lambda z: z, torch.ones(2), **options)


def test_a_scale_for_each_observation_is_said_to_be_a_division() -> None:
    with pytest.raises(TypeError, match=r"got a float32 tensor of shape \(3,\).*divide the residuals by it"):
        ti.least_squares(lambda z: z - 1, torch.zeros(3), loss="huber", f_scale=torch.ones(3))
