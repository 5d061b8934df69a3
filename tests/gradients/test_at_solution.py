"""A gradient where z* is no root is reported; a regular one never is, whatever its units and tolerance."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.solvers.equations import Estimate
from torchimplicit.status import Status

from .problems import randn, well

D = torch.float64
DTYPES = [torch.float64, torch.float32]


def at_zero(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("scale", [2.0**-300, 2.0**-20, 1.0, 2.0**20, 2.0**300])
def test_no_unit_of_g_or_z_plays_a_part(scale: float) -> None:
    for unit in (1e-6, 1.0, 1e6):
        for power, status in ((1, Status.CONVERGED), (2, Status.SINGULAR), (3, Status.SINGULAR)):
            x = at_zero(D)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                z, info = ti.root(
                    lambda z, x, p=power, u=unit: scale * ((z / u - 1) ** p * (z / u + 2) - x),
                    torch.tensor(1.4 * unit, dtype=D),
                    (x,),
                    solver="newton",
                )
                z.backward()
            assert info.adjoint.status == status
            if power == 1:
                assert abs(float(x.grad) / unit - 1 / 3) < 1e-7


@pytest.mark.sampled(7)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rtol", [1e-2, None, 1e-12])
@pytest.mark.parametrize("solver", ["newton", "newton_krylov", "auto"])
def test_a_regular_root_is_never_called_singular_and_only_inaccurate_where_it_is(
    solver: str, rtol: float | None, dtype: torch.dtype
) -> None:
    """Also with equations of different units, an ill-conditioned Jacobian, and a start that is the solution."""
    if dtype == torch.float32 and rtol == 1e-12:
        rtol = 1e-6
    allowed = torch.finfo(dtype).eps ** 0.5 if rtol is None else rtol
    for seed in range(20):
        n = (1, 2, 5, 20)[seed % 4]
        A = well(n, seed=seed, dtype=dtype)
        U, _, Vh = torch.linalg.svd(A)
        ill = U @ torch.diag(torch.logspace(0, -5 if dtype == D else -2, n, dtype=dtype)) @ Vh
        units = torch.logspace(-3, 3, n, dtype=dtype)
        z = randn(n, seed=seed + 1, dtype=dtype)
        for M in (A, ill, units[:, None] * A):
            p = (z + z**3 / 9).requires_grad_()
            start = torch.zeros_like(z)
            for _ in range(2):
                found, info = ti.root(
                    lambda z, p, M=M: M @ (z + z**3 / 9) - M @ p,
                    start,
                    (p,),
                    solver=solver,
                    rtol=rtol,
                    on_failure="ignore",
                )
                (grad,) = torch.autograd.grad(found[0], p)
                start = found.detach()
                off = float((start - z).abs().max() / z.square().mean().sqrt()) / allowed
                if not info.converged:
                    continue
                assert info.adjoint.status == (Status.INACCURATE if off > 20 else Status.CONVERGED) or off > 5
                if off < 1:
                    exact = torch.zeros_like(z)
                    exact[0] = 1 / (1 + z[0] ** 2 / 3)
                    assert torch.allclose(grad, exact, atol=10 * allowed + torch.finfo(dtype).eps ** 0.5)


class Hasty:
    """Newton's method that is content with any z after so many steps."""

    max_steps = 50
    patience = 10

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def init(self, equations: Any, z: Tensor) -> tuple[Tensor, tuple[Any, int]]:
        jacobian = equations.jacobian(z)
        return jacobian.value, (jacobian, 0)

    def step(self, equations: Any, z: Tensor, r: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        jacobian, taken = state
        z = z - ti.linear.LU().factorize(jacobian).solve(r)
        jacobian = equations.jacobian(z)
        return z, jacobian.value, (jacobian, taken + 1)

    def estimate(self, z: Tensor, r: Tensor, state: Any) -> Estimate:
        enough = state[1] >= self.steps
        return Estimate(torch.zeros_like(r) if enough else torch.full_like(r, torch.inf), 0.0)


@pytest.mark.parametrize("n", [1, 3, 70])
def test_a_value_that_is_off_is_named_as_that_and_not_as_a_singular_jacobian(n: int) -> None:
    x = torch.full((n,), 5.0, dtype=D, requires_grad=True)
    z, info = ti.root(lambda z, x: z**3 + z - x, torch.full((n,), 1e3, dtype=D), (x,), solver=Hasty(15))
    assert info.converged
    off = float((z - 1.5159802277).abs().max())
    assert off > 0.5
    with pytest.warns(ti.ConvergenceWarning, match="derivative is not that of the root.*inaccurate") as caught:
        z.sum().backward()
    assert info.adjoint.status == Status.INACCURATE
    named = float(str(caught[0].message).split("off by about ")[1].split()[0])
    assert 0.3 * off < named < 3 * off


def test_what_is_rounding_of_one_unknown_is_a_move_of_one_that_is_much_smaller() -> None:
    """It explains no error: here unknowns are 1 to 1e-8, and the first is off by a quarter in float32."""
    n, draw = 20, torch.Generator().manual_seed(0)
    A = 2 * torch.eye(n) + torch.randn(n, n, generator=draw) / n**0.5
    unit, y = torch.logspace(0, -8, n), torch.randn(n, generator=draw)
    x = (A @ y + 0.1 * torch.sin(y)).requires_grad_()  # so that z = unit · y
    start = unit * y
    start[0] *= 1.25
    g = lambda z, x: A @ (z / unit) + 0.1 * torch.sin(z / unit) - x  # noqa: E731
    z, info = ti.root(g, start, (x,), solver=Hasty(0))
    assert info.converged
    with pytest.warns(ti.ConvergenceWarning, match="inaccurate"):
        z.sum().backward()
    assert info.adjoint.status == Status.INACCURATE


def test_a_tolerance_too_loose_for_the_derivative_is_named_as_that() -> None:
    """exp(8 z) = x, with dz/dx = 1 / (8 x), and 1 / (8 exp(8 z)) at another z, such as one that is off by less than the tolerance."""
    torch.manual_seed(0)
    x = (torch.rand(8, 10, dtype=D) + 0.1).requires_grad_()
    z, info = ti.root(
        lambda z, x: (8 * z).exp() - x, torch.full_like(x, 0.3), (x,), batch_ndim=1, solver="newton", rtol=0.1
    )
    with pytest.warns(
        ti.ConvergenceWarning, match="tolerance allows, but .* the derivative changes.*smaller rtol"
    ) as caught:
        z.sum().backward()
    message = str(caught[0].message)
    off, allowed = (float(number) for number in re.search(r"off by about (\S+) \(allowed (\S+)\)", message).groups())
    assert off < allowed
    assert "farther" not in message
    rows = info.adjoint.status == Status.INACCURATE
    wrong = (x.grad * 8 * x - 1).abs().amax(-1)
    assert rows.any()
    assert (wrong[rows] > 0.1).all()


def test_what_is_off_is_reported_by_every_policy_and_row_by_row() -> None:
    def solve(policy: str) -> tuple[Tensor, ti.SolveInfo, Tensor]:
        x = torch.tensor([5.0, 5.0], dtype=D, requires_grad=True)
        start = torch.tensor([1e3, 1.5], dtype=D)
        z, info = ti.root(lambda z, x: z**3 + z - x, start, (x,), batch_ndim=1, solver=Hasty(5), on_failure=policy)
        return z, info, x

    z, _, _ = solve("raise")
    with pytest.raises(ti.ConvergenceError, match="1 of 2 systems"):
        z.sum().backward()
    z, info, x = solve("nan")
    z.sum().backward()
    assert info.adjoint.status.tolist() == [Status.INACCURATE, Status.CONVERGED]
    assert x.grad.isnan().tolist() == [True, False]
    root = 1.5159802277
    assert abs(float(x.grad[1]) - 1 / (3 * root**2 + 1)) < 1e-8


@pytest.mark.slow
def test_no_second_derivative_is_taken() -> None:
    """Attention, whose backward on the processor has no derivative, and a loose tolerance, which leaves z* a part of it off."""
    q = torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(0))
    W = torch.nn.Parameter(torch.eye(16) * 0.97)
    for rtol in (1e-2, 1e-3, 1e-5):
        for solver in ("picard", "anderson"):

            def cell(z: Tensor) -> Tensor:
                return 0.97 * torch.nn.functional.scaled_dot_product_attention(z @ W, q, z) + q / 10

            z, info = ti.fixed_point(cell, torch.zeros_like(q), solver=solver, rtol=rtol, on_failure="ignore")
            z.square().sum().backward()
            assert info.adjoint is not None
            assert W.grad.isfinite().all()


def test_a_function_that_raises_beside_the_root_is_no_matter() -> None:
    evaluated: list[Tensor] = []

    def g(z: Tensor, x: Tensor) -> Tensor:
        evaluated.append(z.detach())
        if bool((z < 1).any()):
            raise ValueError("out of its domain")
        return (z - 1) * (z + 1) - x

    x = torch.zeros((), dtype=D, requires_grad=True)
    z, info = ti.root(g, torch.tensor(3.0, dtype=D), (x,), solver="newton", rtol=1e-3)
    before = len(evaluated)
    z.backward()
    assert info.adjoint.converged
    assert len(evaluated) <= before + 1
    assert abs(float(x.grad) - 0.5) < 1e-3


@pytest.mark.parametrize("rtol", [None, 1e-2])
@pytest.mark.parametrize("solve", ["root", "fixed_point", "minimize"])
def test_a_look_costs_one_evaluation(solve: str, rtol: float | None) -> None:
    count = 0
    W = well(5)

    def f(z: Tensor, x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        value = {
            "root": lambda: W @ z + z**3 - x,
            "fixed_point": lambda: torch.tanh(W @ z / 4 + x),
            "minimize": lambda: (z**4).sum() / 4 + (z @ z) / 2 - x @ z,
        }
        return value[solve]()

    x = randn(5, seed=2).requires_grad_()
    z = getattr(ti, solve)(f, torch.zeros(5, dtype=D), (x,), rtol=rtol).value
    before = count
    z.sum().backward()
    assert count <= before + 1


@pytest.mark.parametrize("solver", [None, ti.linear.LU(), ti.linear.Cholesky(), ti.linear.GMRES(), ti.linear.CG()])
def test_linear_solve_tells_its_products_and_the_error_of_its_solution(solver: Any) -> None:
    n = 8
    i = torch.arange(n, dtype=D)
    A = 1 / (i[:, None] + i + 1) + 1e-6 * torch.eye(n, dtype=D)
    exact = torch.ones(n, dtype=D)
    count = 0

    def product(z: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return A @ z

    z, info = ti.linear_solve(A, A @ exact, solver=solver, rtol=1e-12)
    assert info.products > 0
    error = float((z - exact).abs().max())
    assert float(info.error) < 1e-4
    if solver is None or isinstance(solver, (ti.linear.LU, ti.linear.Cholesky)):
        assert 1e-3 * error <= float(info.error) <= 1e3 * error + 1e-14
    z, info = ti.linear_solve(product, A @ exact, solver=solver, rtol=1e-12)
    assert 0 < int(info.products)
