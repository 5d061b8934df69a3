"""Of many starts each problem keeps the best: the global minimum, a root that most starts miss; and its gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

import torchimplicit as ti

D = torch.float64


def rastrigin(z: Tensor, x: Tensor) -> Tensor:
    return ((z - x) ** 2 + 3 - 3 * torch.cos(4 * math.pi * z)).sum(-1)


def test_every_problem_of_a_batch_finds_its_global_minimum() -> None:
    x = torch.tensor([[0.1, -0.7], [1.3, 0.4], [-1.6, 0.9]], dtype=D, requires_grad=True)
    draw = torch.Generator().manual_seed(0)
    starts = 4 * torch.rand(200, 3, 2, dtype=D, generator=draw) - 2
    z, info = ti.multi_start(ti.minimize, rastrigin, starts, (x,), batch_ndim=1, rtol=1e-10)
    assert info.converged.all()
    for i in range(3):
        for j in range(2):  # the objective is separable, and each part has a minimum in every half
            a = float(x[i, j].detach())
            best = min(
                (
                    minimize_scalar(
                        lambda z, a=a: (z - a) ** 2 + 3 - 3 * math.cos(4 * math.pi * z),
                        bounds=(k / 2 - 0.25, k / 2 + 0.25),
                        method="bounded",
                        options={"xatol": 1e-12},
                    )
                    for k in range(-5, 6)
                ),
                key=lambda found: found.fun,
            )
            assert z[i, j].item() == pytest.approx(best.x, abs=1e-6)
    (grad,) = torch.autograd.grad(z.sum(), x)
    curvature = 2 + 3 * (4 * math.pi) ** 2 * torch.cos(4 * math.pi * z.detach())
    torch.testing.assert_close(grad, 2 / curvature, rtol=1e-7, atol=0.0)


def test_a_root_that_one_start_in_ten_reaches() -> None:
    # Outside of the narrow well at 3 there is no slope that leads Newton's method to it.
    def g(z: Tensor, depth: Tensor) -> Tensor:
        return 1 - depth * torch.exp(-25 * (z - 3) ** 2)

    starts = torch.linspace(-6, 6, 60, dtype=D).unsqueeze(1).expand(60, 2)
    depth = torch.tensor([2.0, 3.0], dtype=D, requires_grad=True)
    z, info = ti.multi_start(ti.root, g, starts, (depth,), batch_ndim=1, solver="newton", max_steps=20)
    assert info.converged.all()
    assert (g(z, depth).abs() < 1e-6).all()  # z to 4.5e-8, where g is as steep as 15
    alone = ti.root(g, starts[0], (depth,), batch_ndim=1, solver="newton", max_steps=20, on_failure="ignore").info
    assert not alone.converged.any()
    assert torch.autograd.grad(z.sum(), depth)[0].isfinite().all()


def test_a_fit_with_local_minima_in_a_tree() -> None:
    t = torch.linspace(0, 4, 60, dtype=D)
    y = torch.sin(3.1 * t)

    def r(z: dict[str, Tensor], y: Tensor) -> Tensor:
        return torch.sin(z["frequency"] * t) - y

    starts = {"frequency": torch.linspace(0.5, 6, 12, dtype=D)}
    z, info = ti.multi_start(ti.least_squares, r, starts, (y,))
    assert info.converged
    assert z["frequency"].item() == pytest.approx(3.1, abs=1e-7)
    stuck = ti.least_squares(r, {"frequency": torch.tensor(0.5, dtype=D)}, (y,), on_failure="ignore").value
    assert abs(stuck["frequency"].item() - 3.1) > 0.1


def test_where_none_converges_the_nearest_is_reported() -> None:
    starts = torch.tensor([5.0, 0.5, -4.0], dtype=D)
    with pytest.warns(ti.ConvergenceWarning):
        _, info = ti.multi_start(ti.root, lambda z: z**2 + 1, starts, solver="newton", max_steps=1)
    assert not info.converged
    assert float(info.residual) <= 1 + 0.5**2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"solve": ti.linear_solve}, TypeError, "first argument must be ti.root.*linear_solve"),
        ({"solve": lambda *args, **options: ti.minimize(*args, **options)}, TypeError, "known what is best.*lambda"),
        ({"starts": torch.tensor(1.0)}, ValueError, r"dimension in front that counts the starts.*\(\).*torch.stack"),
        ({"starts": torch.ones(3), "batch_ndim": 1}, ValueError, r"batch_ndim=1.*\(3,\)"),
        ({"starts": torch.ones(0)}, ValueError, r"at least 1.*\(0,\)"),
        ({"starts": [torch.ones(3), torch.ones(2)]}, ValueError, r"same number.*\(3,\), \(2,\)"),
        ({"starts": [1.0, 2.0]}, TypeError, r"starts must be a tensor.*float 1\.0"),
        ({"starts": torch.arange(3)}, TypeError, "floating or complex.*int64"),
        ({"args": torch.ones(2)}, TypeError, "args must be a tuple"),
        ({"fn": 3}, TypeError, "must be a function"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        ti.multi_start(**{"solve": ti.minimize, "fn": lambda z: z**2, "starts": torch.ones(3), **arguments})


def test_starts_that_are_no_numbers_are_passed_over() -> None:
    starts = torch.tensor([torch.nan, -1.0, torch.inf, 1.0], dtype=torch.float64)
    z, info = ti.multi_start(ti.minimize, lambda z: (z**2 - 1) ** 2 + z / 4, starts)
    assert info.converged
    assert z < -1
    with pytest.warns(ti.ConvergenceWarning, match="nonfinite"):
        ti.multi_start(ti.minimize, lambda z: z**2, starts[:1])


def test_a_robust_fit_is_the_best_by_its_loss() -> None:
    """Cauchy's loss has a minimum where three residuals vanish, and another where one does, which would be worse by far: the sum of
    squares is smaller there."""

    def residuals(z: Tensor) -> Tensor:
        return torch.stack([z + 1, z + 1, z + 1, 2.5 * (1 - z)])

    starts = torch.tensor([1.0, -1.0], dtype=D)
    options = {"loss": "cauchy", "f_scale": 0.5}
    worse, better = (ti.least_squares(residuals, start, **options).value for start in starts)
    assert residuals(worse).square().sum() < residuals(better).square().sum()
    assert torch.log1p((residuals(worse) / 0.5).square()).sum() > torch.log1p((residuals(better) / 0.5).square()).sum()
    assert ti.multi_start(ti.least_squares, residuals, starts, **options).value == better
