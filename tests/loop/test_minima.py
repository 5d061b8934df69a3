"""A stationary point that is no minimum is not called one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit import Status

D = torch.float64


def saddle(z: Tensor) -> Tensor:
    return z[..., 0] ** 2 - z[..., 1] ** 2 + z[..., 0] * z[..., 2] + z[..., 2] ** 2


@pytest.mark.parametrize("phi", [saddle, lambda z: -(z**2).sum(), lambda z: z.cos().sum()])
def test_a_saddle_point_or_a_maximum_is_reported(phi: object) -> None:
    with pytest.warns(ti.ConvergenceWarning, match=r"(?s)saddle.*negative eigenvalue.*Start nearer"):
        info = ti.minimize(phi, torch.full((3,), 0.1, dtype=D), solver="newton").info
    assert info.status == Status.SADDLE
    assert not info.converged


def test_it_is_asked_of_a_start_that_is_stationary() -> None:
    info = ti.minimize(saddle, torch.zeros(3, dtype=D), on_failure="ignore").info
    assert (info.steps, info.status) == (0, Status.SADDLE)


@pytest.mark.parametrize(
    "phi",
    [
        lambda z: (z**4).sum(),  # the Hessian vanishes at the minimum
        lambda z: (z[0] - z[1] + 1) ** 2 + z[2] ** 2,  # a valley of minima
        lambda z: 1e8 * z[0] ** 2 + 1e-8 * (z[1] - 1) ** 2 + z[2] ** 2,  # badly scaled
        lambda z: torch.zeros((), dtype=D),  # every point is one
    ],
)
def test_a_degenerate_minimum_is_no_saddle(phi: object) -> None:
    info = ti.minimize(phi, torch.full((3,), 0.3, dtype=D), solver="anderson", on_failure="ignore", max_steps=200).info
    assert info.status != Status.SADDLE


def test_a_least_squares_fit_that_is_none_is_reported() -> None:
    def r(z: Tensor) -> Tensor:  # ‖r‖² = (z² − 1)², largest between the two fits ±1
        return z**2 - 1

    assert (
        ti.least_squares(r, torch.tensor(0.1, dtype=D), solver="newton", on_failure="ignore").info.status
        == Status.SADDLE
    )
    assert ti.least_squares(r, torch.tensor(0.8, dtype=D)).info.converged


def test_each_system_of_a_batch_is_asked_on_its_own() -> None:
    def phi(z: Tensor) -> Tensor:  # minima at ±1, a maximum at 0
        return ((z**2 - 1) ** 2).sum(-1)

    z0 = torch.tensor([[0.9], [0.1], [-1.1]], dtype=D)
    z, info = ti.minimize(phi, z0, batch_ndim=1, solver="newton", on_failure="nan")
    assert info.status.tolist() == [Status.CONVERGED, Status.SADDLE, Status.CONVERGED]
    assert z.isnan().flatten().tolist() == [False, True, False]
    vmapped = torch.vmap(lambda z0: ti.minimize(phi, z0, solver="newton", on_failure="ignore").info.status)(z0)
    assert vmapped.tolist() == info.status.tolist()
    assert ti.root(lambda z: z**3 - z, z0, batch_ndim=1).info.converged.all()
