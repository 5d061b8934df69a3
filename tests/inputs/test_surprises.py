"""Uses that nobody planned for: each gives the right answer, or an error that says what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import torchimplicit as ti

from ..every_solver import GENERAL

D = torch.float64
X = torch.tensor([1.0, 2.0, 3.0], dtype=D)
ZERO = torch.zeros(3, dtype=D)
SOLVES: dict[str, Callable[[], Tensor]] = {
    "root": lambda: ti.root(lambda z: z**3 + z - X, ZERO).value,
    "root, newton_krylov": lambda: ti.root(lambda z: z**3 + z - X, ZERO, solver="newton_krylov").value,
    "fixed point": lambda: ti.fixed_point(lambda z: torch.tanh(z) / 2 + X, ZERO, solver="newton").value,
    "minimum": lambda: ti.minimize(lambda z: ((z - X) ** 4 + (z - X) ** 2).sum(), ZERO).value,
    "fit": lambda: ti.least_squares(lambda z: z + z**3 / 9 - X, ZERO).value,
    "linear": lambda: ti.linear_solve(torch.diag(X), X).value,
}


@pytest.mark.parametrize("name", SOLVES)
def test_inference_mode_finds_what_no_grad_finds(name: str) -> None:
    with torch.no_grad():
        expected = SOLVES[name]()
    with torch.inference_mode():
        torch.testing.assert_close(SOLVES[name](), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("place", ["z0", "closure"])
def test_tensors_of_inference_mode_serve_outside_of_it(place: str) -> None:
    with torch.inference_mode():
        cached = torch.full((3,), 0.1, dtype=D)
    x = X.clone().requires_grad_()
    z0, shift = (cached, 0) if place == "z0" else (ZERO, cached)
    z = ti.root(lambda z: z**3 + z - x + shift, z0, rtol=1e-13).value
    z.sum().backward()
    torch.testing.assert_close(x.grad, 1 / (3 * z.detach() ** 2 + 1))


@pytest.mark.parametrize("create_graph", [True, False])
def test_an_energy_gradient_needs_its_graph(create_graph: bool) -> None:
    x = X.clone().requires_grad_()

    def g(z: Tensor) -> Tensor:
        with torch.enable_grad():
            y = z if z.requires_grad else z.detach().requires_grad_()
            (force,) = torch.autograd.grad((y**4 / 4).sum(), y, create_graph=create_graph)
        return force + z - x

    if create_graph:
        z = ti.root(g, ZERO, solver="broyden", rtol=1e-12).value
        z.sum().backward()
        torch.testing.assert_close(x.grad, 1 / (3 * z.detach() ** 2 + 1))
    else:
        with pytest.raises(ti.CaptureError, match="create_graph=True"):
            ti.root(g, ZERO, solver="broyden", rtol=1e-12)


def test_a_function_may_return_a_tensor_that_it_was_not_given() -> None:
    x = X.clone().requires_grad_()
    z = ti.fixed_point(lambda z: x, ZERO).value
    (z * X).sum().backward()
    torch.testing.assert_close(x.grad, X)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1e-5), (D, 1e-5), (D, 1e-7), (D, 1e-12)])
def test_a_small_scale_is_no_convergence(dtype: torch.dtype, scale: float) -> None:
    z, info = ti.root(lambda z: scale * (z**3 + z - X.to(dtype)), ZERO.to(dtype))
    assert info.converged
    assert info.steps > 0
    torch.testing.assert_close(z**3 + z, X.to(dtype), rtol=1e-2, atol=1e-3)


@pytest.mark.sampled(7)
@pytest.mark.parametrize("method", [*GENERAL, None])
@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_a_small_g_is_no_root(dtype: torch.dtype, method: str | None) -> None:
    """g lies below every rounding error at the start already, and the first step of most methods makes it larger."""
    eps = torch.finfo(dtype).eps
    for scale in (eps**2, 2 * eps, eps**0.8):
        for x in (X.to(dtype), X.flip(0).to(dtype) * 1.7):
            z, info = ti.root(lambda z: scale * (z**3 + z - x), ZERO.to(dtype), solver=method, on_failure="ignore")  # noqa: B023
            if method not in ("picard", "anderson"):  # whose steps are too short by far
                assert info.converged or method in ("chord", "broyden", "newton_krylov")
            assert not info.converged or torch.allclose(z**3 + z, x, rtol=10 * eps**0.5)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float32, 1e-30), (torch.float32, 1e-37), (torch.float32, 1e30), (D, 1e-170), (D, 1e200), (D, 1e300)],
)
def test_residuals_whose_squares_vanish_or_overflow_are_told_from_0_and_infinity(
    dtype: torch.dtype, scale: float
) -> None:
    x, eps = X.to(dtype), torch.finfo(dtype).eps
    z, info = ti.root(lambda z: scale * (z**3 + z - x), ZERO.to(dtype), atol=0.0)
    assert info.converged
    torch.testing.assert_close(z**3 + z, x, rtol=eps**0.5, atol=0)
    two = torch.stack([ZERO, ZERO]).to(dtype)
    factor = torch.tensor([[scale], [1.0]], dtype=dtype)
    z, info = ti.root(lambda z: factor * (z**3 + z - x), two, (), atol=0.0, batch_ndim=1)
    assert info.converged.all()
    torch.testing.assert_close(z**3 + z, x.expand(2, 3), rtol=eps**0.5, atol=0)
    for policy in ("chord", "dogleg", "newton_krylov"):  # whatever they can do, nothing is called a root that is none
        z, info = ti.root(
            lambda z: scale * (z**3 + z - x), ZERO.to(dtype), atol=0.0, solver=policy, on_failure="ignore"
        )
        assert not info.converged or torch.allclose(z**3 + z, x, rtol=eps**0.4)


@pytest.mark.parametrize("scale", [1e25, 1e-25])
@pytest.mark.parametrize("method", ["picard", "anderson"])
def test_a_fixed_point_whose_square_vanishes_or_overflows(method: str, scale: float) -> None:
    b = X.float() * scale
    z, info = ti.fixed_point(lambda z: z.roll(1) / 2 + b, torch.zeros(3), solver=method, atol=0.0, rtol=1e-6)
    assert info.converged
    assert info.steps > 3
    exact = torch.linalg.solve(torch.eye(3, dtype=D) - torch.eye(3, dtype=D).roll(1, 0) / 2, X)
    torch.testing.assert_close((z / scale).to(D), exact, rtol=1e-5, atol=0)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("n", [1, 2, 9, 40])
def test_at_the_rounding_floor_a_warm_start_has_converged(n: int, dtype: torch.dtype) -> None:
    """A start that is wrong in its last digits only: no method can do better, and what is left is below eps^(3/4)."""
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        W, b = (
            torch.randn(n, n, dtype=D, generator=generator) * 3 / n**0.5,
            4 * torch.randn(n, dtype=D, generator=generator),
        )
        g = lambda z: torch.tanh(W.to(z) @ z) + 2 * z - b.to(z)  # noqa: B023, E731
        z = ti.root(g, torch.zeros(n, dtype=D), rtol=1e-14, on_failure="ignore").value.to(dtype)
        for method in (None, "newton", "dogleg", "newton_krylov"):
            _, info = ti.root(g, z * (1 + 3 * torch.finfo(dtype).eps), solver=method)
            assert info.converged


def test_a_root_to_rounding_is_a_root_for_a_warm_start() -> None:
    g = lambda z: z**3 + z - X  # noqa: E731
    z = ti.root(g, ZERO, rtol=1e-15, on_failure="ignore").value
    with torch.no_grad():
        _, info = ti.root(g, z * (1 + 1e-15))
    assert info.converged
    assert info.steps <= 2


def test_the_explicit_way_takes_a_step_from_a_start_that_is_a_root() -> None:
    x = torch.zeros(2, 3, dtype=D).index_fill(0, torch.tensor([1]), 1.0).requires_grad_()
    z, info = ti.fixed_point(
        lambda z: torch.tanh(z) / 2 + x,
        torch.zeros(2, 3, dtype=D),
        batch_ndim=1,
        solver="picard",
        adjoint=ti.Unrolled(),
    )
    (gradient,) = torch.autograd.grad(z.sum(), x)
    assert info.steps[0] >= 1
    assert (gradient[0] >= 1).all()


def test_a_callback_may_write_into_what_it_is_given() -> None:
    seen: list[int] = []

    def spoil(step: int, z: Tensor, residual: Tensor) -> None:
        seen.append(step)
        z.zero_()
        residual.zero_()

    z, info = ti.root(lambda z: z**3 + z - X, ZERO + 1, callback=spoil)
    assert info.converged
    assert len(seen) == info.steps + 1
    torch.testing.assert_close(z**3 + z, X)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("lucky", range(1, 8))
@pytest.mark.parametrize("method", ["picard", "anderson", "broyden"])
def test_noise_that_happens_to_pass_is_reported(lucky: int, method: str) -> None:
    calls = 0

    def f(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        noise = torch.rand(3, dtype=D)
        return z + 0 * noise if calls == lucky else z / 2 + X + noise

    with pytest.warns(ti.ConvergenceWarning, match="stochastic"):
        _, info = ti.fixed_point(f, ZERO, solver=method)
    assert info.status == ti.Status.STOCHASTIC


def test_a_tensor_subclass_is_named() -> None:
    class Special(Tensor):
        pass

    x = X.clone().requires_grad_().as_subclass(Special)
    with pytest.raises(ti.CaptureError, match=r"Special.*as_subclass\(torch.Tensor\)"):
        ti.root(lambda z: z**3 + z - x, ZERO)


@pytest.mark.parametrize("solver", ["newton", "picard"])
def test_a_function_that_changes_z_is_told_to_copy(solver: str) -> None:
    with pytest.raises(RuntimeError, match=r"z.clone\(\)"):
        ti.root(lambda z: z.mul_(2) - X, ZERO, solver=solver)


def test_a_cell_with_a_misspelt_option_is_refused_when_it_is_made() -> None:
    with pytest.raises(TypeError, match=r"slver.*solver"):
        ti.nn.FixedPoint(torch.nn.Identity(), slver="newton")
    with pytest.raises(TypeError, match="init must be a function"):
        ti.nn.Root(torch.nn.Identity(), init=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [
        lambda: ti.Phantom(3, "a"),
        lambda: ti.Phantom(True),
        lambda: ti.Unrolled(steps=True),
        lambda: ti.solvers.Picard(0),
        lambda: ti.solvers.Newton("x"),
        lambda: ti.solvers.Anderson(memory=True),
        lambda: ti.linear.Neumann(2.5),
        lambda: ti.root(lambda z: z, ZERO, rtol=True),
        lambda: ti.root(lambda z: z, ZERO, rtol=float("inf")),
    ],
)
def test_parameters_are_checked_where_they_are_given(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="got"):
        make()
