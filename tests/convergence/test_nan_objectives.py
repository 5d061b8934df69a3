"""An objective that is NaN or infinite has no minimum there, whatever its gradient: the status says so, and the values are not used."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import torchimplicit as ti

from ..every_solver import DOWNHILL, PARTICULAR
from .outcomes import D, S, outcome, right, silently_wrong

EQUATIONS = ["newton", "chord", "newton_krylov", "pseudo_transient", "broyden", "anderson", "picard"]
DESCENTS = ["auto", *(name for name, why in PARTICULAR.items() if why == DOWNHILL and name != "projected_newton")]
SQUARES = ["auto", "levenberg_marquardt", "gauss_newton", "dogleg", "trust_newton", "newton_cg", "bfgs", "lbfgs"]
HOLES = [torch.nan, torch.inf, -torch.inf]
slow = pytest.mark.slow


def with_hole(value: float) -> Callable[[Tensor], Tensor]:
    """(z − 1)² to the right of 0, and to the left a constant, whose gradient is 0."""
    return lambda z: torch.where(z > 0, (z - 1) ** 2, value).sum(-1)


@pytest.mark.parametrize("dtype", [D, pytest.param(S, marks=slow)])
@pytest.mark.parametrize("value", HOLES)
@pytest.mark.parametrize("solver", [*DESCENTS, *EQUATIONS])
def test_a_constant_that_is_no_number_is_no_minimum(solver: str, value: float, dtype: torch.dtype) -> None:
    result = outcome(ti.minimize, with_hole(value), torch.tensor([-1.0, -2.0], dtype=dtype), solver=solver)
    assert not result.info.converged
    assert result.info.status == ti.Status.NONFINITE
    assert result.words


@pytest.mark.sampled(3)
@pytest.mark.parametrize("value", HOLES)
@pytest.mark.parametrize("solver", [*DESCENTS, *EQUATIONS])
def test_only_the_systems_in_the_hole_fail(solver: str, value: float) -> None:
    starts = torch.tensor([[2.0, 3.0], [-1.0, -2.0], [0.5, 1.5], [-1.0, 2.0]], dtype=D)
    phi = with_hole(value)
    result = outcome(
        ti.minimize,
        lambda z, x: phi(z) - x * z[..., 0],
        starts,
        0.2 * torch.ones(4, dtype=D),
        solver=solver,
        batch_ndim=1,
    )
    truth = torch.tensor([1.1, 1.0], dtype=D).expand(4, 2)
    assert not result.info.converged[1]
    assert not silently_wrong(result, ~right(result.z, truth, rows=True)), (result.z, result.info.status)
    good = torch.tensor([0, 2])
    if solver in ("auto", "trust_newton", "bfgs"):
        assert result.info.converged[good].all()
        torch.testing.assert_close(result.gradient[good], torch.full((2,), 0.5, dtype=D), rtol=1e-6, atol=0)


@pytest.mark.parametrize("solver", [*DESCENTS, *EQUATIONS])
def test_an_objective_that_is_nan_where_its_gradient_vanishes_has_no_minimum_there(solver: str) -> None:
    """The gradient is that of (z − 1)², and leads to 1; the value is NaN everywhere."""
    result = outcome(
        ti.minimize, lambda z: ((z - 1) ** 2).sum() + torch.nan, torch.tensor([3.0, 2.0], dtype=D), solver=solver
    )
    assert not result.info.converged
    assert result.words


@pytest.mark.parametrize("value", HOLES)
def test_within_bounds_too(value: float) -> None:
    for solver in ("auto", "projected_newton"):
        start = torch.tensor([-1.0, -2.0], dtype=D)
        result = outcome(ti.minimize, with_hole(value), start, bounds=(-5.0, 5.0), solver=solver)
        assert not result.info.converged
        result = outcome(
            ti.minimize, with_hole(value), start, bounds=(-1.0, None), solver=solver
        )  # one held by its bound
        assert not result.info.converged


@pytest.mark.parametrize("value", HOLES)
@pytest.mark.parametrize("solver", [*SQUARES, "bounded"])
def test_a_fit_of_what_is_no_number_has_failed(solver: str, value: float) -> None:
    start = torch.tensor([-1.0, -2.0], dtype=D)
    options = {"bounds": (-5.0, 5.0)} if solver == "bounded" else {"solver": solver}
    result = outcome(ti.least_squares, lambda z: torch.where(z > 0, z - 1, value), start, **options)
    assert not result.info.converged
    assert result.words


@pytest.mark.parametrize("value", HOLES)
@pytest.mark.parametrize(
    "solver", ["auto", "newton", "chord", "newton_krylov", "dogleg", "broyden", "anderson", "picard"]
)
def test_nor_is_it_a_root_or_a_fixed_point(solver: str, value: float) -> None:
    start = torch.tensor([-1.0, -2.0], dtype=D)
    assert not outcome(ti.root, lambda z: torch.where(z > 0, z - 1, value), start, solver=solver).info.converged
    assert not outcome(ti.fixed_point, lambda z: torch.where(z > 0, z / 2, value), start, solver=solver).info.converged


@pytest.mark.parametrize("policy", ["raise", "nan"])
def test_the_policies_hold_for_it(policy: str) -> None:
    start = torch.tensor([-1.0, -2.0], dtype=D)
    if policy == "raise":
        with pytest.raises(ti.ConvergenceError, match="nonfinite"):
            ti.minimize(with_hole(torch.nan), start, on_failure=policy)
    else:
        assert ti.minimize(with_hole(torch.nan), start, on_failure=policy).value.isnan().all()


@pytest.mark.parametrize("solver", DESCENTS)
def test_a_step_into_the_hole_is_turned_back(solver: str) -> None:
    """−log z + z has its minimum at 1; to the left of 0 it is NaN with the gradient NaN. From 0.01 the first step is long."""
    result = outcome(
        ti.minimize,
        lambda z, x: (z - x * z.log()).sum(),
        torch.tensor([0.01, 3.0], dtype=D),
        torch.ones(2, dtype=D),
        solver=solver,
    )
    assert not silently_wrong(result, ~right(result.z, torch.ones(2, dtype=D)))
    if solver == "auto":
        assert result.silent, result.words
