"""Optimisers of torch.optim find the minimum; the gradient is that of the minimum, whatever they did."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import torchimplicit as ti

D = torch.float64
ADAM = ti.interop.TorchOptimizer(torch.optim.Adam, lr=0.1)


def phi(z: Tensor, b: Tensor) -> Tensor:
    return (z - b).cosh().sum(-1) + z.square().sum(-1) / 2 + z[..., 0] * z[..., 1] / 3


def data() -> Tensor:
    return torch.randn(3, 2, dtype=D, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (torch.optim.SGD, {"lr": 0.2, "momentum": 0.5}),
        (torch.optim.Adam, {"lr": 0.1}),
        (torch.optim.RMSprop, {"lr": 1e-2, "centered": True}),
        (torch.optim.Rprop, {"step_sizes": (1e-12, 1.0)}),
    ],
)
def test_value_and_gradient_are_those_of_newton(
    optimizer: type[torch.optim.Optimizer], options: dict[str, object]
) -> None:
    b = data().requires_grad_()
    method = ti.interop.TorchOptimizer(optimizer, **options)
    tolerance = 1e-2 if optimizer is torch.optim.RMSprop else 1e-9  # RMSprop's steps have the size lr and no end
    z, info = ti.minimize(phi, torch.zeros(3, 2, dtype=D), (b,), batch_ndim=1, solver=method, rtol=tolerance)
    assert info.converged.all()
    exact = ti.minimize(phi, torch.zeros(3, 2, dtype=D), (b,), batch_ndim=1, rtol=1e-13).value
    torch.testing.assert_close(z, exact, rtol=10 * tolerance, atol=10 * tolerance)
    (gradient,), (expected,) = (torch.autograd.grad(v.square().sum(), b) for v in (z, exact))
    torch.testing.assert_close(gradient, expected, rtol=10 * tolerance, atol=30 * tolerance)


def test_a_batch_is_solved_as_its_systems_are_one_by_one() -> None:
    b, z0 = data(), torch.zeros(3, 2, dtype=D)
    z0[1, 0] = torch.nan
    together, info = ti.minimize(phi, z0, (b,), batch_ndim=1, solver=ADAM, rtol=1e-3, on_failure="ignore")
    assert info.converged.tolist() == [True, False, True]
    for i in (0, 2):
        alone, single = ti.minimize(phi, z0[i], (b[i],), solver=ADAM, rtol=1e-3)
        torch.testing.assert_close(together[i], alone, rtol=1e-9, atol=1e-9)
        assert abs(int(info.steps[i]) - int(single.steps)) <= 1


def test_one_that_mixes_the_numbers_takes_one_system() -> None:
    options = {"line_search_fn": "strong_wolfe", "tolerance_grad": 1e-12, "tolerance_change": 0.0}
    method = ti.interop.TorchOptimizer(torch.optim.LBFGS, **options)
    b = data()
    z, info = ti.minimize(phi, torch.zeros(2, dtype=D), (b[0],), solver=method, rtol=1e-9)
    assert info.converged
    torch.testing.assert_close(z, ti.minimize(phi, torch.zeros(2, dtype=D), (b[0],)).value, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match=r"LBFGS may mix the rows.*one by one"):
        ti.minimize(phi, torch.zeros(3, 2, dtype=D), (b,), batch_ndim=1, solver=method)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(TypeError, match=r"class of torch\.optim.*Adam"):
        ti.interop.TorchOptimizer("adam")
    with pytest.raises(TypeError, match="goes downhill"):
        ti.root(lambda z: z - 1, torch.zeros(2), solver=ADAM)
    with pytest.raises(TypeError, match="cannot be unrolled"):
        ti.minimize(phi, torch.zeros(2, dtype=D), (data()[0].requires_grad_(),), solver=ADAM, adjoint=ti.Unrolled())


def test_it_can_be_vmapped() -> None:
    b = data()
    solve = lambda b: ti.minimize(phi, torch.zeros(2, dtype=D), (b,), solver=ADAM, rtol=1e-3).value  # noqa: E731
    torch.testing.assert_close(torch.vmap(solve)(b), torch.stack([solve(row) for row in b]), rtol=1e-9, atol=1e-9)
