"""A stationary point that is no minimum is not called one."""

from __future__ import annotations

from collections.abc import Callable

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


S = torch.float32


def forced(n: int, dtype: torch.dtype, net: float, periodic: bool) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A chain of springs that nothing holds, pulled at with forces of a sum of ``net`` n; only without one has it a minimum."""
    b = torch.randn(n, dtype=D, generator=torch.Generator().manual_seed(n))
    b = (b - b.mean() + net).to(dtype)

    def phi(z: Tensor) -> Tensor:
        ends = z - z.roll(1) if periodic else z[1:] - z[:-1] - 1
        return (ends**2).sum() / 2 - (b * z).sum()

    return phi, b.double()


@pytest.mark.sampled(5)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("n", [3, 5, 10, 20, 70, 120])
def test_a_slope_that_nothing_bends_leads_to_no_minimum(n: int, periodic: bool, dtype: torch.dtype) -> None:
    phi, _ = forced(n, dtype, 0.1, periodic)
    info = ti.minimize(phi, torch.zeros(n, dtype=dtype), on_failure="ignore").info
    assert info.status == Status.DIVERGED


@pytest.mark.sampled(9)
@pytest.mark.parametrize("solver", ["bfgs", "lbfgs", "nonlinear_cg", "newton_cg", "newton"])
@pytest.mark.parametrize("n", [3, 20, 70, pytest.param(300, marks=pytest.mark.slow)])
def test_nor_does_it_by_any_method(n: int, solver: str) -> None:
    phi, _ = forced(n, D, 0.1, True)
    assert not ti.minimize(phi, torch.zeros(n, dtype=D), solver=solver, on_failure="ignore").info.converged


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("n", [3, 10, 20, 70, 120, 300])
def test_without_the_slope_a_line_of_minima_is_one(n: int, periodic: bool, dtype: torch.dtype) -> None:
    phi, b = forced(n, dtype, 0.0, periodic)
    for start in (0.0, 1e3):
        z, info = ti.minimize(phi, torch.full((n,), start, dtype=dtype), on_failure="ignore")
        assert info.converged
        moved = z.double() - start
        ends = (
            moved - moved.roll(1) if periodic else torch.cat([moved[:1] * 0, moved[1:] - moved[:-1] - 1, moved[:1] * 0])
        )
        force = ends - ends.roll(-1) if periodic else ends[:-1] - ends[1:]
        assert (force - b).abs().max() <= 4 * torch.finfo(dtype).eps ** 0.5 * z.double().square().mean().sqrt()


@pytest.mark.parametrize("dtype", [D, S])
def test_a_number_that_enters_by_a_slope_alone(dtype: torch.dtype) -> None:
    z0 = torch.ones(2, dtype=dtype)
    info = ti.minimize(lambda z: z[0] ** 2 + z[1], z0, on_failure="ignore").info
    assert info.status == Status.DIVERGED
    assert ti.minimize(lambda z: z[0] ** 2 + 0 * z[1], z0).info.converged


@pytest.mark.sampled(5)
@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("solver", ["trust_newton", "newton_cg", "bfgs", "lbfgs", "nonlinear_cg"])
def test_a_plateau_is_no_minimum_in_whatever_unit(solver: str, unit: float) -> None:
    """At the start the gradient is 1e-17 of what it is at its steepest, and the Hessian has a negative eigenvalue."""
    for z0 in (torch.tensor([5.0, 4.0], dtype=D), torch.tensor([4.0, 3.0], dtype=S)):
        z, info = ti.minimize(lambda z: -unit * (-(z**2).sum()).exp(), z0, solver=solver, on_failure="ignore")
        if info.converged:
            assert z.abs().max() <= 1e-3
        else:
            assert info.status != Status.DIVERGED
        assert info.converged or solver != "trust_newton" or unit != 1


@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize(
    ("phi", "z0"),
    [
        (lambda z: (z**3).sum(), [0.2]),
        (lambda z: (z**3).sum(), [0.2, 0.4]),
        (lambda z: (z**5).sum(), [0.2]),
        (lambda z: z[0] ** 3 + z[1] ** 2, [0.2, 0.2]),
        (lambda z: 1 + ((z - 1) ** 3).sum(), [1.3]),
        (lambda z: (z[0] - 2 * z[1] + 3) ** 3 + (z[0] + z[1]) ** 2, [0.9, -0.2]),
        (lambda z: (torch.sin(z) - z).sum(), [0.3]),
    ],
)
def test_an_inflection_is_no_minimum(phi: Callable[[Tensor], Tensor], z0: list[float], dtype: torch.dtype) -> None:
    with pytest.warns(ti.ConvergenceWarning, match=r"(?s)saddle.*goes on falling"):
        info = ti.minimize(phi, torch.tensor(z0, dtype=dtype)).info
    assert info.status == Status.SADDLE


@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize(
    ("phi", "z0", "at"),
    [
        (lambda z: (z**4).sum(), [0.2, 0.3], [0.0, 0.0]),
        (lambda z: (z**6).sum(), [0.2, 0.3], [0.0, 0.0]),
        (lambda z: ((z - 1) ** 4).sum(), [1.2, 0.3], [1.0, 1.0]),
        (lambda z: (z**4 - 4 * z**3 + 6 * z**2 - 4 * z).sum(), [1.3], [1.0]),  # the same, with rounding
        (lambda z: (z[0] - 1) ** 4 + 2 * (z[0] - 1) ** 5 + z[1] ** 2, [1.2, 0.3], [1.0, 0.0]),
    ],
)
def test_a_flat_minimum_is_one(
    phi: Callable[[Tensor], Tensor], z0: list[float], at: list[float], dtype: torch.dtype
) -> None:
    z, info = ti.minimize(phi, torch.tensor(z0, dtype=dtype))
    assert info.converged
    assert (z - torch.tensor(at, dtype=dtype)).abs().max() <= torch.finfo(dtype).eps ** 0.3


X = torch.tensor([[1.0, 0.5], [2.0, -1.0], [-1.5, 0.3], [-0.5, -2.0], [0.7, 1.9]], dtype=D)


def logistic(z: Tensor, labels: Tensor, penalty: float) -> Tensor:
    return torch.nn.functional.softplus(-labels * (X.to(z) @ z)).sum() + penalty * z.square().sum()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [D, torch.float32])
@pytest.mark.parametrize("solver", [None, "lbfgs", "newton"])
def test_a_minimum_at_infinity_is_reported_as_one(solver: str | None, dtype: torch.dtype) -> None:
    """Classes that a line separates: any z that does is bettered by 2 z. With a penalty there is a minimum."""
    labels = torch.tensor([1, 1, -1, -1, 1], dtype=dtype)
    start = torch.zeros(2, dtype=dtype)
    with pytest.warns(ti.ConvergenceWarning, match=r"(?s)without bound.*at infinity.*can be separated.*penalty"):
        info = ti.minimize(logistic, start, (labels, 0.0), solver=solver).info
    assert info.status == Status.DIVERGED
    assert ti.minimize(logistic, start, (labels, 1e-2), solver=solver).info.converged


def test_a_search_cut_short_in_a_valley_is_no_minimum_at_infinity() -> None:
    """Rosenbrock's function from afar: it has come a long way, and it goes on to (1, 1)."""
    start = torch.tensor([-30.0, 900.0], dtype=D)
    info = ti.minimize(
        lambda z: 100 * (z[1] - z[0] ** 2) ** 2 + (1 - z[0]) ** 2, start, max_steps=20, on_failure="ignore"
    ).info
    assert info.status == Status.MAX_STEPS


def test_the_derivative_of_a_parameter_that_the_data_do_not_determine_says_so() -> None:
    t = torch.linspace(0, 3, 20, dtype=D)
    y = (2 * torch.exp(-t)).requires_grad_()
    z, info = ti.least_squares(
        lambda z, y: z[0] * z[1] * torch.exp(-z[2] * t) - y, torch.tensor([1.0, 1.5, 0.5], dtype=D), (y,)
    )
    assert abs(float(z[2]) - 1) <= 1e-6  # the rate is determined, and so is its derivative
    torch.autograd.grad(z[2], y, retain_graph=True)
    assert info.adjoint is not None
    assert info.adjoint.converged
    with pytest.warns(ti.ConvergenceWarning, match="data of a fit do not determine"):
        torch.autograd.grad(z[0], y)
    assert "data of a fit do not determine" in info.summary()
