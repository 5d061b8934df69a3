"""A solution fed back into the call that made it is found at once, whatever the method, the unit and the dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.solvers import Bisection, Chandrupatla

from ..every_solver import GENERAL
from . import units
from .outcomes import D, S, error, outcome, right

slow = pytest.mark.slow
STEADY = {"auto", "newton", "chord", "newton_krylov", "dogleg", "gauss_newton", "bfgs", "bounded"}  # the fast part
SIZES = {"double": [1.0, 2.0**-300, 1e-8, 1e8, 2.0**300], "single": [1.0, 2.0**-40, 1e-3, 1e5, 2.0**40]}


def some(solvers: list[str]) -> list[Any]:
    """All of them, those that take many steps marked slow."""
    return [pytest.param(name, marks=[slow] * (name not in STEADY)) for name in solvers]


def twice(run: Callable[[Tensor], ti.Solution], start: Tensor) -> tuple[ti.Solution, ti.Solution]:
    first = run(start)
    return first, run(first.value)


def check(first: ti.Solution, again: ti.Solution) -> None:
    assert first.info.converged.all()
    assert again.info.converged.all()
    assert int(again.info.steps.max()) <= 1
    # It is at least as good as it was: within the tolerance that both have met.
    assert right(again.value, first.value, factor=2)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", units.DTYPES)
@pytest.mark.parametrize("name", units.EQUATIONS)
def test_a_root(name: str, dtype: str) -> None:
    kind = units.DTYPES[dtype][0]
    x = units.X.to(kind)
    for factor in SIZES[dtype]:
        g = lambda z, factor=factor: factor * units.cubic(z, x)  # noqa: E731
        check(*twice(lambda z, g=g: ti.root(g, z, solver=units.EQUATIONS[name]), units.START.to(kind)))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", units.DTYPES)
@pytest.mark.parametrize("solver", [*units.BRACKETS, "auto", Bisection(-10.0, 10.0), Chandrupatla(-10.0, 10.0)])
def test_a_root_of_one_unknown(solver: Any, dtype: str) -> None:
    """A method without a bracket has to look beside the start; one with a bracket has to narrow it, whatever the start is."""
    kind = units.DTYPES[dtype][0]
    starts = torch.tensor([0.3, 1.4], dtype=kind)
    for factor in SIZES[dtype]:
        g = lambda z, factor=factor: factor * units.number(z, 5.0)  # noqa: E731
        first, again = twice(lambda z, g=g: ti.root(g, z, solver=solver, batch_ndim=1), starts)
        if isinstance(solver, str):
            check(first, again)
        else:
            assert again.info.converged.all()
            assert right(again.value, first.value, factor=2)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", units.DTYPES)
@pytest.mark.parametrize("name", ["auto", *GENERAL])
def test_a_fixed_point(name: str, dtype: str) -> None:
    kind = units.DTYPES[dtype][0]
    x = units.X.to(kind)
    for unit in (1.0, 2.0**-20, 1e-3, 1e5, 2.0**20):
        f = lambda z, unit=unit: unit * units.contraction(z / unit, x)  # noqa: E731
        check(*twice(lambda z, f=f: ti.fixed_point(f, z, solver=name), unit * units.START.to(kind)))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", units.DTYPES)
@pytest.mark.parametrize("solver", some([*units.MINIMISERS, "bounded"]))
def test_a_minimum(solver: str, dtype: str) -> None:
    kind = units.DTYPES[dtype][0]
    x = units.X.to(kind)
    options = {"bounds": (-1e3, 1e3)} if solver == "bounded" else {"solver": solver}
    for factor in SIZES[dtype]:
        phi = lambda z, factor=factor: factor * units.bowl(z, x)  # noqa: E731
        check(*twice(lambda z, phi=phi: ti.minimize(phi, z, **options), units.NEAR.to(kind)))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("dtype", units.DTYPES)
@pytest.mark.parametrize("solver", some([*units.SQUARES, "bounded"]))
def test_a_fit(solver: str, dtype: str) -> None:
    """Where residuals are left, and where none are."""
    kind = units.DTYPES[dtype][0]
    options = {"bounds": (-1e3, 1e3)} if solver == "bounded" else {"solver": solver}
    start = torch.tensor([2.0, 1.0], dtype=kind)
    for y in (units.Y.to(kind), 3 * (-1.5 * units.T.to(kind)).exp()):
        for factor in SIZES[dtype]:
            factor = factor if solver in units.SEE_RESIDUALS else factor**0.5
            r = lambda z, y=y, factor=factor: factor * units.decay(z, y)  # noqa: E731
            check(*twice(lambda z, r=r: ti.least_squares(r, z, **options), start))


# A heat equation in kelvin


def heating(n: int, dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
    """One implicit step of a rod that conducts, radiates to 300 K, and is heated at one end: zero at the new temperatures."""
    conduction, radiation, step = 25.0, 2e-9, 0.05
    heat = torch.zeros(n, dtype=dtype)
    heat[0] = 4000.0

    def g(new: Tensor, old: Tensor) -> Tensor:
        padded = torch.cat([new[:1], new, new[-1:]])
        flow = conduction * (padded[2:] - 2 * new + padded[:-2])
        return new - old - step * (flow + heat - radiation * (new**4 - 300.0**4))

    return g


def newton_by_hand(g: Callable[[Tensor, Tensor], Tensor], old: Tensor) -> Tensor:
    new = old
    for _ in range(8):
        new = new - torch.linalg.solve(torch.func.jacrev(g)(new, old), g(new, old))
    return new


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("n", [20, pytest.param(100, marks=slow), pytest.param(400, marks=slow)])
@pytest.mark.parametrize("solver", ["auto", "newton", "newton_krylov", "broyden"])
def test_each_step_of_a_heat_equation_starts_from_the_last(solver: str, n: int, dtype: torch.dtype) -> None:
    exact, g = heating(n, D), heating(n, dtype)
    now, truth, evaluations = torch.full((n,), 300.0, dtype=dtype), torch.full((n,), 300.0, dtype=D), 0
    for _ in range(12):
        result = outcome(ti.root, lambda z, old=now: g(z, old), now, solver=solver)
        assert result.silent, result.words
        now, truth = result.z, newton_by_hand(exact, truth)
        evaluations += int(result.info.evaluations)
    assert right(now, truth), error(now, truth)  # a dozen tolerances add up to no more than that
    if solver in ("auto", "newton"):
        assert evaluations <= 12 * 8


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("solver", ["auto", "anderson", "newton", "newton_krylov"])
def test_a_heat_equation_that_has_come_to_rest(solver: str, dtype: torch.dtype) -> None:
    """Long after, each step begins at its own solution, some hundred kelvin: nothing is left to do but to notice."""
    n = 30
    exact, g = heating(n, D), heating(n, dtype)
    rest = torch.full((n,), 500.0, dtype=D)
    for _ in range(10):  # Newton's method for the state that the step leaves as it is
        steady = lambda T: exact(T, T)  # noqa: E731
        rest = rest - torch.linalg.solve(torch.func.jacrev(steady)(rest), steady(rest))
    now = rest.to(dtype)
    for _ in range(5):
        result = outcome(ti.root, lambda z, old=now: g(z, old), now, solver=solver)
        assert result.silent, result.words
        assert result.info.steps <= 1
        now = result.z
    assert right(now, rest), error(now, rest)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("solver", ["auto", "picard", "anderson"])
def test_short_explicit_looking_steps_in_kelvin(solver: str, dtype: torch.dtype) -> None:
    """new = old + h F(new), a contraction: the change in a step is a millionth of the temperature."""
    n, step = 50, 2e-4
    position = torch.linspace(0, 1, n, dtype=dtype)
    now = 300 + 20 * (6 * position).sin()

    def f(new: Tensor, old: Tensor) -> Tensor:
        padded = torch.cat([new[:1], new, new[-1:]])
        return old + step * 25.0 * (padded[2:] - 2 * new + padded[:-2])

    laplacian = (
        torch.diag(torch.full((n,), -2.0, dtype=D))
        + torch.diag(torch.ones(n - 1, dtype=D), 1)
        + torch.diag(torch.ones(n - 1, dtype=D), -1)
    )
    laplacian[0, 0] = laplacian[-1, -1] = -1
    truth = now.double()
    for _ in range(10):
        result = outcome(ti.fixed_point, lambda z, old=now: f(z, old), now, solver=solver)
        assert result.silent, result.words
        assert int(result.info.evaluations) <= 12
        now, truth = result.z, torch.linalg.solve(torch.eye(n, dtype=D) - step * 25.0 * laplacian, truth)
    assert right(now, truth), error(now, truth)
