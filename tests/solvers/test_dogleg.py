"""The dogleg: a trust region that does not see units, for roots and fits."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.solvers import Dogleg

D = torch.float64


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=D)


def chebyquad(z: Tensor) -> Tensor:
    y = 2 * z - 1
    rows = [torch.cos(i * torch.arccos(y.clamp(-1, 1))) for i in (1, 2)]
    rows += [4 * y**3 - 3 * y, 8 * y**4 - 8 * y**2 + 1, 16 * y**5 - 20 * y**3 + 5 * y]
    rows[:2] = [y, 2 * y**2 - 1]
    return torch.stack(rows, -1).mean(-2) - tensor(0, -1 / 3, 0, -1 / 15, 0)


def test_a_linear_system_takes_one_step() -> None:
    A = torch.randn(5, 5, dtype=D, generator=torch.Generator().manual_seed(0))
    b = A @ torch.arange(1.0, 6.0, dtype=D)
    z, info = ti.root(lambda z: A @ z - b, torch.ones(5, dtype=D), solver="dogleg")
    torch.testing.assert_close(z, torch.arange(1.0, 6.0, dtype=D), rtol=1e-9, atol=0)
    assert info.steps == 1


def test_a_system_on_which_newton_diverges() -> None:
    z0 = torch.arange(1, 6, dtype=D) / 6
    z = ti.root(chebyquad, z0, solver="dogleg", rtol=1e-12).value
    half = torch.tensor([0.8324974870, 0.3745414096], dtype=D)
    assert torch.allclose(z, (torch.cat([-half, tensor(0), half.flip(0)]) + 1) / 2, atol=1e-9)


def test_the_units_of_the_unknowns_change_nothing() -> None:
    units = tensor(2.0**20, 2.0**-13)

    def wide(z: Tensor) -> Tensor:  # Rosenbrock's valley
        return torch.stack([1 - z[..., 0], 10 * (z[..., 1] - z[..., 0] ** 2)], -1)

    start = tensor(-1.2, 1)
    z, info = ti.root(wide, start, solver="dogleg", trace=True)
    w, its = ti.root(lambda z: wide(z / units), start * units, solver="dogleg", trace=True)
    assert info.trace is not None
    assert its.trace is not None
    # One ends a step before the other: what is small beside z differs, where its numbers have units of their own in one leaf.
    both = min(len(info.trace), len(its.trace))
    assert torch.equal(info.trace[:both], its.trace[:both])
    assert abs(int(info.steps) - int(its.steps)) <= 1
    assert both > 5
    torch.testing.assert_close(w / units, z, rtol=0.01, atol=0)


def test_a_fit_with_more_residuals_than_unknowns_is_that_of_scipy() -> None:
    t = torch.linspace(0, 2, 15, dtype=D)
    y = 3 * torch.exp(-1.7 * t) + 0.1 * torch.cos(9 * t)

    def r(z: Tensor) -> Tensor:
        return z[0] * torch.exp(-z[1] * t) + z[2] - y

    z = ti.least_squares(r, tensor(1.0, 0.1, 0.0), solver="dogleg", rtol=1e-10).value
    peer = scipy.optimize.least_squares(
        lambda z: r(torch.from_numpy(z)).numpy(), np.array([1.0, 0.1, 0.0]), xtol=1e-15, ftol=1e-15, gtol=1e-15
    )
    np.testing.assert_allclose(z, peer.x, rtol=1e-6)


def test_a_fit_with_fewer_residuals_than_unknowns_reaches_one_of_the_solutions() -> None:
    z = ti.least_squares(lambda z: (z.square().sum() - 4).unsqueeze(0), tensor(1.0, 0.5, 0.3), solver="dogleg").value
    assert abs(z.square().sum() - 4) < 1e-6


@pytest.mark.parametrize("raises", [False, True])
def test_a_trial_point_where_the_function_is_undefined_narrows_the_region(raises: bool) -> None:
    def g(z: Tensor) -> Tensor:
        if raises and bool((z <= 0).any()):
            raise ValueError("negative")
        return z.log()

    z = ti.root(g, tensor(9.0, 1.5), solver="dogleg", batch_ndim=1).value
    assert torch.allclose(z, torch.ones_like(z))


def test_the_gradient_from_the_factors_that_stay_behind() -> None:
    x = tensor(2.0, -1.0).requires_grad_()

    def g(z: Tensor) -> Tensor:
        return torch.stack([z[0] ** 3 + z[1] - x[0], z[1] ** 3 - 2 * z[0] - x[1]])

    z, info = ti.root(g, tensor(0.5, 0.5), solver="dogleg", rtol=1e-12)
    (grad,) = torch.autograd.grad(z[0], x)
    a, b = (3 * z.detach() ** 2).tolist()
    torch.testing.assert_close(grad, tensor(b, -1.0) / (a * b + 2), rtol=1e-9, atol=0)
    assert info.adjoint is not None
    assert info.adjoint.products < 6  # a dense matrix would be two of them, and a factorisation


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_gradient_of_the_unrolled_steps_is_that_of_the_root(checkpoint: bool) -> None:
    x = tensor(0.2, 1.0).requires_grad_()
    adjoint = ti.Unrolled(None, checkpoint)
    z = ti.root(lambda z: torch.atan(z - x), tensor(5.0, -3.0), solver=Dogleg(), batch_ndim=1, adjoint=adjoint).value
    (grad,) = torch.autograd.grad(z.sum(), x)
    torch.testing.assert_close(grad, torch.ones_like(grad), rtol=1e-7, atol=0)


def test_bounds_are_refused_and_not_passed_over() -> None:
    with pytest.raises(TypeError, match="bounds"):
        ti.least_squares(lambda z: z - 5, torch.zeros(2), bounds=(0, 1), solver="dogleg")
