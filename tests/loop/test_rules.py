"""Converged is what the documentation says it is, to the factor; the defaults follow the dtype; the best iterate is returned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.tolerance import Tolerance

D = torch.float64


def rms(v: Tensor) -> float:
    return float(v.square().mean().sqrt())


@pytest.mark.parametrize(("rtol", "atol"), [(1e-3, 0.0), (0.0, 1e-4), (1e-3, 1e-3)])
@pytest.mark.parametrize("batch_ndim", [0, 1])
def test_a_fixed_point_is_judged_by_its_distance_in_the_maximum_norm(rtol: float, atol: float, batch_ndim: int) -> None:
    W = torch.tensor([[0.5, 0.2], [-0.1, 0.7]], dtype=D)
    exact = torch.linalg.solve(torch.eye(2, dtype=D) - W, torch.full((2,), 3.0, dtype=D))
    seen: list[Tensor] = []
    z, info = ti.fixed_point(
        lambda z: z @ W.T + 3,
        torch.zeros((1, 2)[1 - batch_ndim :], dtype=D),
        solver="picard",
        batch_ndim=batch_ndim,
        rtol=rtol,
        atol=atol,
        callback=lambda k, z, r: seen.append(z.clone()),
    )
    assert torch.equal(z, seen[-1])

    def distance(z: Tensor) -> float:
        return float((z - exact).abs().max())

    # The contraction seen is nearly that of the steps to come.
    assert distance(z) <= 1.5 * (atol + rtol * rms(z))
    assert float(info.error.max()) == pytest.approx(distance(z), rel=0.4)
    assert all(distance(y) > (atol + rtol * rms(y)) / 1.5 for y in seen[:-1])


@pytest.mark.parametrize("solve", [ti.root, ti.minimize, ti.least_squares])
@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_roots_and_minima_are_judged_by_their_distance_too(solve: object, unit: float) -> None:
    target = torch.tensor([1.0, 2.0, -1.0], dtype=D)
    slope = torch.tensor([0.3, 0.5, 0.7], dtype=D)
    function = {
        ti.root: lambda z: unit * slope * (z - target) + 0.01 * unit * (z - target) ** 3,
        ti.minimize: lambda z: unit * ((slope * (z - target) ** 2).sum() / 2 + ((z - target) ** 4).sum() / 40),
        ti.least_squares: lambda z: unit * (slope.sqrt() * (z - target) + 0.1 * (z - target) ** 2),
    }[solve]
    z, info = solve(function, torch.zeros(3, dtype=D), rtol=1e-2, atol=1e-3)
    bound = 1e-3 + 1e-2 * rms(z)
    assert float((z - target).abs().max()) <= bound
    assert float(info.error) <= bound
    assert info.steps >= 1


def test_each_leaf_is_judged_by_itself_and_each_number_too() -> None:
    """The mean over all numbers is dominated by p; in x one slow entry hides among a hundred in any mean."""
    slow = torch.full((100,), 0.1, dtype=D).index_fill(0, torch.tensor(17), 0.9)
    z, info = ti.fixed_point(
        lambda z: {"p": 0.5 * z["p"] + 5e4, "x": slow * z["x"] + (1 - slow) * 0.3},
        {"p": torch.tensor(9e4, dtype=D), "x": torch.zeros(100, dtype=D)},
        rtol=1e-3,
        atol=0.0,
    )
    assert info.converged
    assert abs(float(z["p"]) - 1e5) <= 100.0
    assert float((z["x"] - 0.3).abs().max()) <= 1.1 * 1e-3 * 0.3


def test_a_linear_system_is_judged_against_b() -> None:
    A = torch.diag(torch.linspace(1, 50, 40, dtype=D)) + torch.diag(torch.full((39,), 0.3, dtype=D), 1)
    b = torch.randn(3, 40, dtype=D, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1e-6], [1.0], [1e6]])
    z, info = ti.linear_solve(A, b, solver=ti.linear.GMRES(), rtol=1e-4)
    residual = torch.linalg.vector_norm(b - z @ A.T, dim=-1)
    assert (residual <= 1e-4 * torch.linalg.vector_norm(b, dim=-1)).all()
    assert torch.allclose(info.residual, residual, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_default_tolerances_follow_the_dtype(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    tolerance = Tolerance.of(None, None, dtype)
    assert (tolerance.rtol, tolerance.atol) == (eps**0.5, eps)
    z = ti.fixed_point(lambda z: (0.9 * z).cos(), torch.zeros(2, dtype=dtype), solver="picard").value
    exact = ti.root(lambda z: (0.9 * z).cos() - z, z.to(D), rtol=1e-15).value
    assert float((z - exact).abs().max()) <= 1.05 * (eps + eps**0.5 * rms(z))


def test_the_best_iterate_is_returned_with_its_residual() -> None:
    def f(z: Tensor) -> Tensor:  # comes near, and then runs away
        return torch.where(z < 5, z + 1.0 / (1 + z), 3 * z)

    z, info = ti.fixed_point(f, torch.tensor(0.0, dtype=D), solver="picard", trace=True, on_failure="ignore")
    assert info.trace is not None
    assert info.residual == info.trace[info.trace.isfinite()].min() == (f(z) - z).abs()
    assert not info.converged
