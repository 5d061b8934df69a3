"""Where z has run off to so large numbers that z + 1 is z, f(z) − z is 0 by rounding alone: no fixed point, and no root."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import torchimplicit as ti

from .outcomes import D

SHIFT = torch.tensor([1.1, 0.3, 2.0], dtype=D)
METHODS = ["auto", "picard", "anderson", "broyden", "newton", "newton_krylov", "dogleg", "chord", "pseudo_transient"]
# Every f is larger than z, at least in its first number.
LARGER: dict[str, Callable[[Tensor], Tensor]] = {
    "a shift": lambda z: z + SHIFT.to(z),
    "a shift and a wave": lambda z: z + 1.5 + torch.sin(z.roll(1, -1)),
    "softplus": lambda z: z + torch.nn.functional.softplus(-z.roll(1, -1)) + 0.1,
    "a hyperbola": lambda z: (1 + z * z).sqrt() + 0.5,
    "a shift that fades": lambda z: z + torch.exp(-z),
    "one of three": lambda z: torch.cat([z[..., :1] + 1.1, torch.tanh(0.5 * z[..., 1:]) + 0.3], -1),
}


@pytest.mark.sampled(13)
@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", sorted(LARGER))
def test_a_function_that_is_larger_than_z_everywhere_has_no_fixed_point(
    name: str, method: str, dtype: torch.dtype
) -> None:
    f, z0 = LARGER[name], torch.zeros(2, 3, dtype=dtype)
    _, info = ti.fixed_point(f, z0, batch_ndim=1, solver=method, on_failure="ignore")
    assert ti.Status.CONVERGED not in info.status.tolist()


@pytest.mark.sampled(13)
@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", sorted(LARGER.keys() - {"one of three"}))
def test_nor_has_the_difference_a_root(name: str, method: str, dtype: torch.dtype) -> None:
    f, z0 = LARGER[name], torch.zeros(2, 3, dtype=dtype)
    if (name, method, dtype) == ("a hyperbola", "anderson", torch.float32):
        pytest.skip("z + 0.5 is z for every other z there, and z + 1 for the others")
    _, info = ti.root(lambda z: z - f(z), z0, batch_ndim=1, solver=method, on_failure="ignore")
    assert ti.Status.CONVERGED not in info.status.tolist()


def test_what_has_run_off_is_said_where_nothing_is_differentiated_and_in_transforms() -> None:
    with torch.no_grad(), pytest.warns(ti.ConvergenceWarning, match="diverged"):
        ti.fixed_point(lambda z: z + 1.1, torch.zeros(2))
    run = lambda z: ti.fixed_point(lambda z: z + 1.1, z, solver="anderson", on_failure="nan").value  # noqa: E731
    assert run(torch.zeros(2)).isnan().all()
    assert torch.func.vmap(run)(torch.zeros(3, 2)).isnan().all()


@pytest.mark.slow
def test_and_in_graphs() -> None:
    run = lambda z: ti.fixed_point(lambda z: z + 1.1, z, solver="anderson", on_failure="nan").value  # noqa: E731
    assert torch.compile(run, fullgraph=True, backend="aot_eager")(torch.zeros(2)).isnan().all()


@pytest.mark.parametrize("method", ["auto", "anderson", "newton"])
@pytest.mark.parametrize(("slope", "shift"), [(0.999, 1e6), (0.9, 1e8), (0.5, 1e25)])
def test_a_fixed_point_far_from_the_start_is_one(slope: float, shift: float, method: str) -> None:
    z, info = ti.fixed_point(lambda z: slope * z + shift, torch.zeros(2), solver=method)
    assert info.converged
    torch.testing.assert_close(z.to(D), torch.full((2,), shift / (1 - slope), dtype=D), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("method", ["auto", "newton", "newton_krylov", "dogleg", "broyden"])
def test_a_root_far_from_the_start_beside_one_that_is_near_is_one(method: str, dtype: torch.dtype) -> None:
    far = 1e5 if dtype == torch.float32 else 1e9
    start = torch.tensor([0.0, 1.0], dtype=dtype)
    for other in (lambda z: z**2 - 4, lambda z: z.exp() - 1, lambda z: z**3 - z / 2 - 7):
        g = lambda z, other=other: torch.stack([z[0] - far, other(z[1])])  # noqa: E731
        z, info = ti.root(g, start, solver=method, on_failure="ignore")
        if method in ("auto", "newton"):
            assert info.converged
        assert info.status != ti.Status.DIVERGED
        if info.converged:
            torch.testing.assert_close(z[0], torch.tensor(far, dtype=dtype), rtol=1e-4, atol=0)


def test_far_fixed_points_of_maps_that_grow_or_jump_are_some() -> None:
    """From beside a fixed point that repels, where f(z) − z is small; of a staircase; and of a network whose numbers are mostly 0."""
    for f, start, far in (
        (lambda z: 2 * z / (1 + z / 1e10), 0.01, 1e10),
        (lambda z: z + 0.8 * z * (1 - z / 1e12), 0.01, 1e12),
    ):
        z, info = ti.fixed_point(f, torch.tensor(start, dtype=D), solver="picard", max_steps=500)
        assert info.converged
        torch.testing.assert_close(z, torch.tensor(far, dtype=D))
    b = torch.linspace(-3e5, 3e5, 16).unsqueeze(-1)
    z, info = ti.fixed_point(lambda z: (0.5 * z + b).round(), torch.zeros(16, 1), batch_ndim=1)
    assert info.converged.all()
    assert torch.equal(z, (0.5 * z + b).round())
    W = torch.tensor([[0.1, -0.3, 0.2], [0.0, 0.2, -0.4], [-0.2, 0.1, 0.1]])
    _, info = ti.fixed_point(lambda z: torch.relu(z @ W + 1e5 * b.sin()), torch.zeros(16, 3), batch_ndim=1)
    assert info.converged.all()
    assert info.evaluations < 60


def test_a_region_of_roots_that_begins_with_a_jump_is_one() -> None:
    z, info = ti.root(lambda z: torch.nn.functional.hardshrink(z - 1e5, lambd=1e4), torch.tensor(0.0))
    assert info.converged
    assert abs(z - 1e5) <= 1e4


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("method", ["newton", "broyden", "newton_krylov"])
@pytest.mark.parametrize("power", [3, 5, 7])
def test_a_multiple_fixed_point_is_one(power: int, method: str, dtype: torch.dtype) -> None:
    """f(z) − z is 0 by rounding alone around it, as where it fades, but no more farther on."""
    start = torch.tensor(4.2, dtype=dtype)
    z, info = ti.fixed_point(lambda z: z - (z - 5) ** power, start, solver=method)
    assert info.converged
    assert abs(z - 5) <= 2 * (5 * torch.finfo(dtype).eps) ** (1 / power)


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("method", ["newton", "broyden", "newton_krylov"])
def test_a_network_whose_zeros_are_exact_has_a_fixed_point_and_is_asked_little_more(
    method: str, dtype: torch.dtype
) -> None:
    draw = torch.Generator().manual_seed(0)
    W, b = (torch.randn(*shape, dtype=dtype, generator=draw) for shape in ((16, 16), (64, 16)))
    f = lambda z: torch.relu(z @ W / 8 + b)  # noqa: E731
    z, info = ti.fixed_point(f, torch.zeros(64, 16, dtype=dtype), batch_ndim=1, solver=method)
    assert info.converged.all()
    assert (z == 0).any(-1).all()
    torch.testing.assert_close(f(z), z, rtol=1e-3, atol=1e-3)
    assert info.evaluations <= info.steps.max() + 4


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("method", ["auto", "newton", "newton_cg", "lbfgs", "bfgs"])
def test_a_minimum_at_infinity_where_slope_and_curvature_are_0_by_rounding_alone_is_none(
    method: str, dtype: torch.dtype
) -> None:
    """1 − tanh z is 0 from 19 on (9 in float32); a squared hinge really is."""
    start = torch.tensor(0.5, dtype=dtype)
    _, info = ti.minimize(lambda z: 1 - torch.tanh(z), start, solver=method, on_failure="ignore")
    assert not info.converged
    z, info = ti.minimize(lambda z: torch.relu(9 - z).square(), start, solver=method, on_failure="ignore")
    assert info.status != ti.Status.DIVERGED
    if method != "auto":
        assert info.converged
        assert z >= 9 - 1e-3
