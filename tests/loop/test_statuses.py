"""Every status has a problem that provokes it, and the facts of a solve are true."""

from __future__ import annotations

from collections.abc import Callable

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


VANISHING: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": lambda z: (-z).exp(),
    "tanh": lambda z: 1 - z.tanh(),
    "gauss": lambda z: (-(z**2)).exp(),
    "one equation of two": lambda z: torch.stack([1 - z[..., :1].tanh(), z[..., 1:] - 1], -1).flatten(-2),
}


@pytest.mark.sampled(9)
@pytest.mark.parametrize("dtype", [D, torch.float32])
@pytest.mark.parametrize("g", VANISHING)
@pytest.mark.parametrize("solver", [None, "newton", "dogleg", "newton_krylov", "chandrupatla"])
def test_what_has_only_become_too_small_for_a_float_is_no_root(solver: str | None, g: str, dtype: torch.dtype) -> None:
    z0 = torch.tensor([0.2, 0.3] if "two" in g else [0.2], dtype=dtype)
    if solver == "chandrupatla" and len(z0) > 1:
        return
    info = ti.root(VANISHING[g], z0, solver=solver, on_failure="ignore").info
    assert not info.converged
    if solver is None and len(z0) == 1:
        assert info.status == Status.DIVERGED


@pytest.mark.parametrize(
    ("g", "z0"),
    [
        (lambda z: torch.relu(z - 3), 10.0),  # every z <= 3 is a root
        (lambda z: torch.relu(3 - z), -1.2),
        (lambda z: torch.relu(3 - z) ** 2, -1.2),
        (lambda z: z**3 - 8, 5.0),
        (lambda z: (z - 2) * (z**2 + 1), 7.0),
    ],
)
@pytest.mark.parametrize("solver", [None, "newton", "chandrupatla"])
def test_a_region_of_roots_and_a_zero_hit_exactly_are_roots(
    solver: str | None, g: Callable[[Tensor], Tensor], z0: float
) -> None:
    if solver == "chandrupatla" and g(scalar(-9.0)) * g(scalar(9.0)) > 0:
        return
    z, info = ti.root(g, scalar(z0), solver=solver)
    assert info.converged
    assert g(z).abs() <= 1e-7


def test_wiggles_that_the_jacobian_knows_nothing_but_of_hide_no_residual() -> None:
    """The derivative of the wiggle is 1e5 where that of the sine is 1: Newton's corrections are tiny, and lead nowhere."""

    def g(z: Tensor) -> Tensor:
        return z.sin() - 0.5 + 1e-4 * (1e9 * z).sin()

    z0 = torch.tensor([0.2, 0.3], dtype=torch.float32)
    for solver in (None, "newton"):
        z, info = ti.root(g, z0, solver=solver, on_failure="ignore")
        assert info.status == Status.STAGNATED
        assert g(z).abs().max() > 0.1  # were it small, it might be a root
    smooth, info = ti.root(lambda z: z.sin() - 0.5, z0)
    assert info.converged
    assert (smooth - torch.pi / 6).abs().max() <= 1e-3


def test_no_steps_left_is_not_called_divergence() -> None:
    for max_steps in (1, 2, 3):
        info = ti.root(lambda z: z**3 - 1e6, scalar(1e-3), max_steps=max_steps, on_failure="ignore").info
        assert info.status == Status.MAX_STEPS
        assert int(info.steps) <= max_steps
    assert ti.root(lambda z: z**3 - 1e6, scalar(1e-3)).info.converged


def test_no_root_is_called_the_same_in_every_dtype() -> None:
    for solver in (None, "newton"):
        statuses = {
            int(ti.root(lambda z: z.exp() + 1, scalar(2.0).to(dtype), solver=solver, on_failure="ignore").info.status)
            for dtype in (D, torch.float32)
        }
        assert statuses == {Status.SINGULAR}


def test_methods_keep_the_dtype_of_z_whatever_the_default_is() -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(D)
    try:
        for solver in ("dogleg", "levenberg_marquardt"):
            z0 = torch.tensor([2.0, -1.0], dtype=torch.float32)
            z, _ = ti.root(lambda z: z.exp() + z**3 - 1, z0, solver=solver, on_failure="ignore")
            assert z.dtype == torch.float32
            ti.root(lambda z: z.exp() + 1, z0, solver=solver, on_failure="ignore")
    finally:
        torch.set_default_dtype(before)
