"""Systems of a batch that influence each other, although batch_ndim says that they are independent: it is said, and no gradient is
silently that of independent ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit import Status

D = torch.float64


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def by_mean(z: Tensor) -> Tensor:
    return 10 * z.mean(0)


COUPLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": by_mean,
    "neighbour": lambda z: 10 * z.roll(1, 0),
    "largest": lambda z: 10 * z.amax(0),
    "batch norm": lambda z: -10 * torch.nn.functional.batch_norm(z, None, None, training=True),
}


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("solver", ["newton", "chord", "dogleg"])
def test_a_solve_that_fails_because_systems_are_coupled_says_so(coupling: str, solver: str) -> None:
    x, c = randn(6, 2), COUPLINGS[coupling]
    options = {"batch_ndim": 1, "solver": solver, "max_steps": 40, "on_failure": "ignore"}
    g = lambda z: z**3 + z - x + c(z)  # noqa: E731
    z, info = ti.root(g, randn(6, 2, seed=1), **options)
    if info.converged.all():  # which may happen too
        assert g(z).abs().max() < 1e-6
    else:
        assert (info.status[~info.converged] == Status.COUPLED).all()
        assert "batch_ndim=0" in info.message
        assert "dropout" not in info.message


def test_the_mean_over_the_batch_is_blamed_and_not_dropout() -> None:
    x = randn(6)
    with pytest.warns(
        ti.ConvergenceWarning, match="coupled after .* a mean, a norm or a maximum over the batch dimension"
    ):
        ti.root(lambda z: z**3 + z - x + by_mean(z), torch.zeros_like(x), batch_ndim=1)


@pytest.mark.parametrize("solver", [None, "newton", "picard"])
def test_systems_that_fail_by_themselves_are_not_called_coupled(solver: str | None) -> None:
    x = torch.tensor([[1.0], [-1.0], [2.0], [-3.0]], dtype=D)  # z² = x has no root for two of them
    info = ti.root(lambda z: z**2 - x, torch.ones_like(x), batch_ndim=1, solver=solver, on_failure="ignore").info
    assert not info.converged.all()
    assert Status.COUPLED not in info.status.tolist()
    assert Status.STOCHASTIC not in info.status.tolist()


@pytest.mark.parametrize("noise", [1e-4, 1.0])
def test_noise_in_a_batch_is_still_called_noise(noise: float) -> None:
    x = randn(4, 2)
    g = lambda z: z**3 + z - x + noise * torch.rand_like(z)  # noqa: E731
    info = ti.root(g, torch.zeros_like(x), batch_ndim=1, solver="newton", on_failure="ignore").info
    assert (info.status == Status.STOCHASTIC).all()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("strength", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("shape", [(3,), (100,), (3, 3), (40, 3), (3, 70)], ids=str)
def test_the_gradient_is_that_of_the_whole_or_it_is_said(shape: tuple[int, ...], strength: float) -> None:
    x, weights = randn(*shape).requires_grad_(), randn(*shape, seed=1)
    g = lambda z: z**3 + z - x + strength * z.mean(0)  # noqa: E731
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        z = ti.root(g, torch.zeros(shape, dtype=D), batch_ndim=1, solver="newton").value
        (found,) = torch.autograd.grad((z * weights).sum(), x)
    whole = ti.root(g, torch.zeros(shape, dtype=D), rtol=1e-12).value.detach()
    n, rows = whole[0].numel(), len(whole)
    J = torch.diag((3 * whole**2 + 1).flatten()) + strength / rows * torch.eye(n, dtype=D).repeat(rows, rows)
    exact = torch.linalg.solve(J.T, weights.flatten()).reshape(shape)
    if not caught:
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)
    elif strength == 10:
        assert any("influence each other" in str(w.message) or "depends on the z" in str(w.message) for w in caught)


def test_a_system_that_was_solved_before_others_moved_it_is_coupled() -> None:
    """Row 0 is solved by the start, as long as the others are where they start."""
    a = torch.arange(4, dtype=D)[:, None]
    g = lambda z: z - 0.5 * z.mean().tanh() - a  # noqa: E731
    z0 = torch.zeros(4, 2, dtype=D)
    for solver in (None, "newton"):
        info = ti.root(g, z0, batch_ndim=1, solver=solver, on_failure="ignore").info
        assert (info.status == Status.COUPLED).all()
    z, info = ti.root(g, z0)
    assert info.converged
    assert g(z).abs().max() <= 1e-7


@pytest.mark.parametrize("solver", [None, "newton", "chord", "dogleg", "picard"])
def test_independent_systems_that_end_at_different_steps_are_not_asked_again(
    solver: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object) -> Tensor:
        raise AssertionError("an evaluation more")

    monkeypatch.setattr("torchimplicit.loop.solve.coupled", asked)
    a = torch.tensor([[0.0], [0.1], [0.3], [1.0]], dtype=D)
    info = ti.root(lambda z: z**3 / 10 + z - a, torch.zeros_like(a), batch_ndim=1, solver=solver).info
    assert info.converged.all()
    assert len(set(info.steps.tolist())) > 2
