"""Every status has a problem that provokes it, and the facts of a solve are true."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit import Status

from ..every_solver import GENERAL

D = torch.float64


def scalar(x: float) -> Tensor:
    return torch.tensor(x, dtype=D)


def test_a_start_that_is_a_root_takes_no_step() -> None:
    z, info = ti.root(lambda z: z**2 - 4, scalar(2.0))
    assert (info.steps, info.status, z) == (0, Status.CONVERGED, 2.0)


def test_the_step_limit() -> None:
    info = ti.fixed_point(lambda z: 0.9 * z + 1, scalar(0.0), solver="picard", max_steps=3, on_failure="ignore").info
    assert (info.steps, info.status) == (3, Status.MAX_STEPS)
    assert "max_steps" in info.message


def test_no_steps_at_all() -> None:
    info = ti.fixed_point(lambda z: 0.9 * z + 1, scalar(0.0), max_steps=0, on_failure="ignore").info
    assert (info.steps, info.status) == (0, Status.MAX_STEPS)


def test_what_rounding_leaves_of_a_tolerance_of_nothing_has_converged() -> None:
    W = torch.randn(9, 9, dtype=D, generator=torch.Generator().manual_seed(0)) / 9
    info = ti.fixed_point(
        lambda z: (W @ z + 1).cos(), torch.zeros(9, dtype=D), solver="picard", rtol=0.0, atol=1e-30, on_failure="ignore"
    ).info
    assert info.converged
    assert info.steps < 100
    assert info.error <= 1e-15


def test_newton_in_a_cycle_stagnates() -> None:
    info = ti.root(lambda z: z**3 - 2 * z + 2, scalar(0.0), solver="newton", on_failure="ignore").info
    assert info.status == Status.STAGNATED


def test_an_expanding_map_diverges() -> None:
    info = ti.fixed_point(lambda z: 3 * z + 1, scalar(1.0), solver="picard", on_failure="ignore").info
    assert info.status == Status.DIVERGED


def test_leaving_the_domain_is_nonfinite_and_the_best_iterate_is_returned() -> None:
    z, info = ti.root(lambda z: z.log() + 5, scalar(1.0), solver="picard", on_failure="ignore")
    assert info.status == Status.NONFINITE
    assert z == 1.0


def test_a_singular_jacobian_on_the_way() -> None:
    info = ti.root(lambda z: z**2 - 1, scalar(0.0), solver="newton", on_failure="ignore").info
    assert info.status == Status.SINGULAR


def test_the_trace_holds_the_residual_of_every_step_and_the_callback_sees_it() -> None:
    seen: list[tuple[int, float]] = []
    info = ti.fixed_point(
        lambda z: 0.5 * z + 1,
        scalar(0.0),
        solver="picard",
        trace=True,
        callback=lambda k, z, r: seen.append((k, float(r))),
    ).info
    assert info.trace is not None
    assert len(info.trace) == int(info.steps) + 1
    assert [k for k, _ in seen] == list(range(len(info.trace)))
    assert torch.allclose(info.trace, 0.5 ** torch.arange(len(info.trace), dtype=D))


@pytest.mark.parametrize("solver", GENERAL)
def test_evaluations_are_counted_truly(solver: str) -> None:
    calls = 0

    def f(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return (0.5 * z).cos()

    with torch.no_grad():
        info = ti.fixed_point(f, torch.zeros(3, dtype=D), solver=solver).info
    assert int(info.evaluations) == calls


@pytest.mark.parametrize("solver", GENERAL)
def test_a_batch_is_solved_as_its_systems_are_one_by_one(solver: str) -> None:
    W = torch.randn(4, 4, dtype=D, generator=torch.Generator().manual_seed(1)) / 5
    xs = torch.randn(5, 4, dtype=D, generator=torch.Generator().manual_seed(2))

    def layer(x: Tensor, batch_ndim: int) -> tuple[Tensor, ti.SolveInfo, Tensor]:
        x = x.clone().requires_grad_()
        z, info = ti.fixed_point(
            lambda z: torch.tanh(z @ W.T + x), torch.zeros_like(x), solver=solver, batch_ndim=batch_ndim, rtol=1e-10
        )
        z.square().sum().backward()
        assert x.grad is not None
        return z.detach(), info, x.grad

    z, info, grad = layer(xs, 1)
    for i, x in enumerate(xs):
        alone, facts, its = layer(x, 0)
        assert torch.allclose(z[i], alone, atol=1e-9)
        assert torch.allclose(grad[i], its, atol=1e-7)
        assert info.status[i] == facts.status
        assert abs(int(info.steps[i]) - int(facts.steps)) <= 1


def test_newton_converges_quadratically() -> None:
    info = ti.root(lambda z: z.exp() + z - 3, scalar(1.0), solver="newton", rtol=1e-14, trace=True).info
    assert info.trace is not None
    r = info.trace[info.trace > 1e-7]
    assert (r[1:] < 2 * r[:-1] ** 2).all()


def test_newton_krylov_forms_nothing_of_size_n_squared() -> None:
    n = 2000

    def g(z: Tensor) -> Tensor:  # a discretised, asymmetric boundary value problem
        return 3 * z - z.roll(1) - 0.5 * z.roll(-1) + 0.1 * z**3 - 1

    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.untyped_storage().nbytes() // 8)
            return out

    x = torch.zeros(n, dtype=D, requires_grad=True)
    with Largest():
        z, info = ti.root(lambda z: g(z) - x, torch.zeros(n, dtype=D))
        z.sum().backward()
    assert info.converged
    assert largest < 100 * n


def test_anderson_survives_a_singular_mixing_system_in_one_row() -> None:
    x = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, -1.0]], dtype=D)  # the second converges at once
    z, info = ti.fixed_point(lambda z: 0.5 * z.sin() + x, torch.zeros_like(x), solver="anderson", batch_ndim=1)
    assert info.converged.all()
    assert torch.allclose(z, 0.5 * z.sin() + x, atol=1e-6)


@pytest.mark.parametrize("loss", ["linear", "huber"])
@pytest.mark.parametrize("method", [None, "gauss_newton", "trust_newton", "projected_newton"])
def test_a_fit_of_noise_is_stochastic(method: str | None, loss: str) -> None:
    """Each number of z has a residual of its own, so that no two terms of the gradient can cancel, whatever the noise."""
    torch.manual_seed(0)
    info = ti.least_squares(
        lambda z: z - torch.rand(2, dtype=D), torch.zeros(2, dtype=D), solver=method, loss=loss, on_failure="ignore"
    ).info
    assert info.status == Status.STOCHASTIC
