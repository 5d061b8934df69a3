"""One easy, one hard, one divergent and one NaN system in a batch: each has its own fate, and the good ones are right."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit import Status

X = torch.tensor([1.0, 300.0, 1.0, torch.nan], dtype=torch.float64)
ROOTLESS = torch.tensor([False, False, True, False])


def solve(x: Tensor, a: Tensor, on_failure: str = "ignore", solver: str = "newton") -> ti.Solution:
    """z³ + a z = x; the third has none: z² + 1 = 0; ``a`` is shared by all."""

    def g(z: Tensor) -> Tensor:
        return torch.where(ROOTLESS, z * z + 1 + 0 * a, z**3 + a * z - x)

    start = torch.full_like(x, 1.5)
    return ti.root(g, start, batch_ndim=1, on_failure=on_failure, solver=solver, rtol=1e-12)


def parameters() -> tuple[Tensor, Tensor]:
    return X.clone().requires_grad_(), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)


def test_each_system_has_its_own_steps_and_status() -> None:
    z, info = solve(*parameters())
    assert info.converged.tolist() == [True, True, False, False]
    assert info.status[3] == Status.NONFINITE
    assert info.steps[0] < info.steps[1]
    assert info.steps[3] == 0
    assert torch.allclose(z[:2] ** 3 + 0.5 * z[:2], X[:2])


def test_the_good_ones_are_what_they_are_alone() -> None:
    together = solve(*parameters())
    for i in range(2):
        z, info = ti.root(lambda z, i=i: z**3 + 0.5 * z - X[i], torch.tensor(1.5, dtype=torch.float64), rtol=1e-12)
        assert torch.allclose(z, together.value[i])
        assert abs(int(info.steps) - int(together.info.steps[i])) <= 1


def test_gradients_of_the_good_ones_are_right_in_shared_parameters_too() -> None:
    x, a = parameters()
    z = solve(x, a).value
    z[:2].sum().backward()
    slope = 1 / (3 * z.detach()[:2] ** 2 + 0.5)
    assert torch.allclose(a.grad, -(slope * z.detach()[:2]).sum())
    assert torch.allclose(x.grad[:2], slope)


def test_a_nan_argument_does_not_poison_a_parameter_that_multiplies_it() -> None:
    x = torch.tensor([1.0, 2.0, torch.nan], dtype=torch.float64)
    U = torch.ones((), dtype=torch.float64, requires_grad=True)
    start = torch.zeros_like(x)
    z = ti.fixed_point(lambda z: 0.3 * z.sin() + U * x, start, batch_ndim=1, on_failure="ignore", rtol=1e-12).value
    z[:2].sum().backward()
    assert torch.allclose(U.grad, (x[:2] / (1 - 0.3 * z.detach()[:2].cos())).sum())


def test_infinities_that_are_meant_are_left_alone() -> None:
    mask = torch.tensor([0.0, -torch.inf], dtype=torch.float64)  # as of attention: shared by the good systems
    x = torch.tensor([[1.0, 2.0], [torch.nan, 1.0]], dtype=torch.float64)
    U = torch.ones((), dtype=torch.float64, requires_grad=True)

    def f(z: Tensor) -> Tensor:
        return 0.3 * z.sin() + U * (x + 1) * torch.softmax(mask, 0)

    z = ti.fixed_point(f, torch.zeros_like(x), batch_ndim=1, on_failure="ignore", rtol=1e-12).value
    z[0, 0].backward()
    exact = 2 / (1 - 0.3 * z.detach()[0, 0].cos())
    assert torch.isnan(U.grad) or torch.allclose(U.grad, exact)


def test_the_policy_warn_names_the_systems_and_what_to_try() -> None:
    with pytest.warns(
        ti.ConvergenceWarning, match=r"(?s)1 of 4 systems \(flat index 3\): nonfinite.*Check the arguments"
    ):
        solve(*parameters(), on_failure="warn")


def test_the_policy_raise_raises() -> None:
    with pytest.raises(ti.ConvergenceError, match="nonfinite"):
        solve(*parameters(), on_failure="raise")


def test_the_policy_nan_marks_the_failed_systems_only() -> None:
    x, a = parameters()
    z = solve(x, a, on_failure="nan").value
    assert z.isnan().tolist() == [False, False, True, True]
    z[:2].sum().backward()
    assert a.grad.isfinite()


def test_the_policy_nan_gives_the_failed_systems_no_gradient_either() -> None:
    a = torch.tensor([1.0, -1.0, torch.nan], dtype=torch.float64, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        z, info = ti.root(lambda z: z**2 - a, torch.ones(3, dtype=torch.float64), batch_ndim=1, on_failure="nan")
        z.nan_to_num().sum().backward(retain_graph=True)  # nothing of the failed systems is asked for
        torch.testing.assert_close(a.grad, torch.tensor([0.5, 0, 0], dtype=torch.float64))
        (gradient,) = torch.autograd.grad(z.sum(), a)
    assert gradient.isnan().tolist() == [False, True, True]
    assert info.adjoint is not None
    assert info.adjoint.converged.tolist() == [True, False, False]


def test_the_policy_ignore_says_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(*parameters(), on_failure="ignore")


def test_a_gradient_asked_of_a_system_without_a_root_is_reported() -> None:
    with pytest.warns(ti.ConvergenceWarning):
        z = solve(*parameters(), on_failure="warn").value
    with pytest.warns(ti.ConvergenceWarning, match=r"derivative.*nonfinite"):
        z.sum().backward()


@pytest.mark.parametrize("n", [2, 12])  # few numbers are solved for in another way than many
def test_a_system_that_left_the_domain_has_no_gradient_whatever_its_neighbours_have(n: int) -> None:
    a = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    z0 = torch.full((2, n), 0.5, dtype=torch.float64)
    z0[0, 0] = -1.0
    z, info = ti.root(lambda z: z.log() + a, z0, solver="newton", batch_ndim=1, on_failure="ignore")
    assert info.status.tolist() == [Status.NONFINITE, Status.CONVERGED]
    z.sum().backward()
    torch.testing.assert_close(a.grad, -z.detach()[1].sum())
    assert info.adjoint is not None
    assert info.adjoint.status.tolist() == [Status.NONFINITE, Status.CONVERGED]


def fails_backward(on_failure: str) -> tuple[Tensor, ti.SolveInfo, Tensor]:
    """A good forward, and a backward whose linear solver is stopped after one step."""
    W = torch.randn(30, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 8
    x = torch.ones(30, dtype=torch.float64, requires_grad=True)
    adjoint = ti.Implicit(ti.linear.GMRES(), max_steps=1)
    start = torch.zeros(30, dtype=torch.float64)
    z, info = ti.fixed_point(lambda z: torch.tanh(W @ z + x), start, adjoint=adjoint, on_failure=on_failure)
    return z, info, x


def test_a_failed_backward_warns_raises_marks_or_is_only_noted() -> None:
    z, _, x = fails_backward("warn")
    with pytest.warns(ti.ConvergenceWarning, match="derivative"):
        z.sum().backward()
    z, _, x = fails_backward("raise")
    with pytest.raises(ti.ConvergenceError, match="derivative"):
        z.sum().backward()
    z, _, x = fails_backward("nan")
    z.sum().backward()
    assert x.grad.isnan().all()
    z, info, x = fails_backward("ignore")
    z.sum().backward()
    assert info.adjoint is not None
    assert not info.adjoint.converged
    assert info.adjoint.status == Status.MAX_STEPS


@pytest.mark.parametrize("power", [2, 3])
def test_the_gradient_at_a_multiple_root_is_reported_as_singular(power: int) -> None:
    x = torch.zeros((), dtype=torch.float64, requires_grad=True)
    z, info = ti.root(lambda z: z**power - x, torch.ones((), dtype=torch.float64))
    with pytest.warns(ti.ConvergenceWarning, match="singular"):
        z.backward()
    assert info.adjoint is not None
    assert info.adjoint.status == Status.SINGULAR


def test_a_singular_jacobian_is_reported_even_where_the_linear_system_is_consistent() -> None:
    A = torch.tensor([[0.5, 1.0], [1.5, 3.0]], dtype=torch.float64)
    b = torch.tensor([0.5, 1.5], dtype=torch.float64, requires_grad=True)
    z, info = ti.root(lambda z: A @ z - b, torch.tensor([1.0, 0.0], dtype=torch.float64))  # a root among many
    assert info.converged
    with pytest.warns(ti.ConvergenceWarning, match="singular"):
        (z * A[0]).sum().backward()
