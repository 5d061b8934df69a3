"""Converged is what the documentation says it is, to the factor; the defaults follow the dtype; the best iterate is returned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import torchimplicit as ti

D = torch.float64


def rms(v: Tensor) -> float:
    return float(v.square().mean().sqrt())


@pytest.mark.parametrize(("rtol", "atol"), [(1e-3, 0.0), (0.0, 1e-4), (1e-3, 1e-3)])
@pytest.mark.parametrize("batch_ndim", [0, 1])
def test_a_fixed_point_is_judged_against_z(rtol: float, atol: float, batch_ndim: int) -> None:
    W = torch.tensor([[0.5, 0.2], [-0.1, 0.7]], dtype=D)
    seen: list[Tensor] = []

    def f(z: Tensor) -> Tensor:
        return z @ W.T + 3

    z, _ = ti.fixed_point(
        f,
        torch.zeros((1, 2)[1 - batch_ndim :], dtype=D),
        solver="picard",
        batch_ndim=batch_ndim,
        rtol=rtol,
        atol=atol,
        callback=lambda k, z, r: seen.append(z.clone()),
    )
    assert torch.equal(z, seen[-1])
    assert rms(f(z) - z) <= atol + rtol * rms(z)
    assert all(rms(f(y) - y) > atol + rtol * rms(y) for y in seen[:-1])


@pytest.mark.parametrize("solve", [ti.root, ti.minimize, ti.least_squares])
def test_roots_and_minima_are_judged_against_the_start(solve: object) -> None:
    target = torch.tensor([1.0, 2.0, -1.0], dtype=D)
    slope = torch.tensor([0.3, 0.5, 0.7], dtype=D)

    def gradient(z: Tensor) -> Tensor:
        return slope * (z - target)

    function = {
        ti.root: gradient,
        ti.minimize: lambda z: (slope * (z - target) ** 2).sum() / 2,
        ti.least_squares: lambda z: slope.sqrt() * (z - target),
    }[solve]
    seen: list[Tensor] = []
    start = torch.zeros(3, dtype=D)
    z, _ = solve(
        function, start, solver="picard", rtol=1e-2, atol=1e-3, callback=lambda k, z, r: seen.append(z.clone())
    )
    bound = 1e-3 + 1e-2 * rms(gradient(start))
    assert rms(gradient(z)) <= bound
    assert all(rms(gradient(y)) > bound for y in seen[:-1])


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
    tolerance = ti.stopping.Tolerance.of(None, None, dtype)
    assert tolerance.rtol == eps**0.5
    assert tolerance.atol == eps
    assert tolerance.floor == eps**0.75
    z, info = ti.fixed_point(lambda z: (0.9 * z).cos(), torch.zeros(2, dtype=dtype), solver="picard", trace=True)
    assert info.trace is not None
    bound = eps + eps**0.5 * rms(z)
    assert info.trace[-1] <= bound < info.trace[-2]


def test_the_best_iterate_is_returned_with_its_residual() -> None:
    def f(z: Tensor) -> Tensor:  # comes near, and then runs away
        return torch.where(z < 5, z + 1.0 / (1 + z), 3 * z)

    z, info = ti.fixed_point(f, torch.tensor(0.0, dtype=D), solver="picard", trace=True, on_failure="ignore")
    assert info.trace is not None
    assert info.residual == info.trace[info.trace.isfinite()].min() == (f(z) - z).abs()
    assert not info.converged
