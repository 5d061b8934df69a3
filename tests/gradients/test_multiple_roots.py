"""A gradient at a multiple root is reported, whatever the method, the start and the dtype."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.status import Status

from ..every_solver import GENERAL
from .problems import randn, well
from .test_at_solution import DTYPES, D, at_zero

STARTS = [2.0, 0.0, 1.01, 1 + 1e-4, 5.0, -3.0]


def said(run: Callable[[], Any]) -> list[str]:
    """What ``run`` warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in caught if issubclass(w.category, ti.ConvergenceWarning)]


# Conditions with a double or triple root at 1 for x = 0, the last two of whose values are lost in rounding near it.
MULTIPLE = {
    "double": lambda z, x: (z - 1) ** 2 - x,
    "triple": lambda z, x: (z - 1) ** 3 - x,
    "square of exp": lambda z, x: (z.exp() - torch.e) ** 2 - x,
    "expanded": lambda z, x: z * z - 2 * z + 1 - x,
    "cosine": lambda z, x: 1 - torch.cos(z - 1) - x,
}


@pytest.mark.sampled(13)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", GENERAL)
@pytest.mark.parametrize("name", MULTIPLE)
def test_a_multiple_root_away_from_zero_is_reported_from_every_start(
    name: str, solver: str, dtype: torch.dtype
) -> None:
    for start in STARTS:

        def run(start: float = start) -> None:
            z0 = torch.tensor(start, dtype=dtype)
            ti.root(MULTIPLE[name], z0, (at_zero(dtype),), solver=solver).value.backward()

        assert said(run), f"from {start}"


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", GENERAL)
def test_a_tangent_fixed_point_is_reported(solver: str, dtype: torch.dtype) -> None:
    for start in STARTS:

        def run(start: float = start) -> None:
            z0 = torch.tensor(start, dtype=dtype)
            ti.fixed_point(lambda z, x: z - (z - 1) ** 2 + x, z0, (at_zero(dtype),), solver=solver).value.backward()

        assert said(run), f"from {start}"


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2, 70])
def test_a_double_root_in_one_direction_of_many_is_reported(n: int, dtype: torch.dtype) -> None:
    """Along (1, ..., 1) the root is a double one; the loss sees one number of z."""
    A = well(n, dtype=dtype)
    P = torch.eye(n, dtype=dtype) - 1 / n

    def g(z: Tensor, x: Tensor) -> Tensor:
        mean = (z - 1).mean()
        return A @ (P @ (z - 1) + mean**2) - x

    for solver in (None, "newton", "newton_krylov"):
        for start in (2.0, 1.01):

            def run(solver: str | None = solver, start: float = start) -> None:
                z0 = torch.full((n,), start, dtype=dtype) + 0.1 * randn(n, seed=1, dtype=dtype)
                z = ti.root(g, z0, (at_zero(dtype, n),), solver=solver or "auto", on_failure="warn").value
                z[0].backward()

            assert said(run), f"{solver} from {start}"


@pytest.mark.sampled(11)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", ["auto", "trust_newton", "lbfgs", "newton_cg", "newton"])
@pytest.mark.parametrize("start", [2.0, 0.0, 1.01])
def test_a_minimum_whose_hessian_vanishes_is_reported(solver: str, start: float, dtype: torch.dtype) -> None:
    for phi in (
        lambda z, x: ((z - 1) ** 4).sum() - x * z[0],
        lambda z, x: (z[0] - 1) ** 4 + (z[0] + z[1] - 2) ** 2 - x * z[0],
    ):

        def run(phi: Any = phi) -> None:
            z0 = torch.tensor([start, start - 0.3], dtype=dtype)
            ti.minimize(phi, z0, (at_zero(dtype),), solver=solver).value[0].backward()

        assert said(run)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", ["levenberg_marquardt", "gauss_newton", "dogleg"])
def test_a_fit_whose_jacobian_vanishes_is_reported(solver: str, dtype: torch.dtype) -> None:
    for start in STARTS:

        def run(start: float = start) -> None:
            z0 = torch.tensor([start, start + 0.2], dtype=dtype)
            z = ti.least_squares(lambda z, x: (z - 1) ** 2 - x, z0, (at_zero(dtype),), solver=solver).value
            z[0].backward()

        assert said(run), f"from {start}"


@pytest.mark.parametrize("solver", ["newton", "broyden", "anderson", "newton_krylov", "dogleg"])
def test_of_a_batch_only_multiple_roots_are_named_and_the_others_are_exact(solver: str) -> None:
    x = torch.tensor([0.0, 1.0, 0.0, 4.0], dtype=D, requires_grad=True)
    z0 = torch.tensor([2.0, 2.5, 1.3, 2.5], dtype=D)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        z, info = ti.root(lambda z, x: (z - 1) ** 2 - x, z0, (x,), batch_ndim=1, solver=solver)
        z.sum().backward()
    reported = (info.status != Status.CONVERGED) | (info.adjoint.status != Status.CONVERGED)
    assert reported.tolist() == [True, False, True, False]
    torch.testing.assert_close(x.grad[1::2], 0.5 / x.detach()[1::2].sqrt(), rtol=1e-6, atol=0)
