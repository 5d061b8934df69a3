"""No unit plays a part: not that of g, of an objective or of residuals, nor that of z."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import torchimplicit as ti

from ..every_solver import GENERAL
from .outcomes import D, Outcome, outcome, right
from .units import (
    AFFINE,
    BRACKETS,
    DTYPES,
    EQUATIONS,
    FIT,
    FIXED,
    LEAST,
    LONG,
    MINIMISERS,
    NEAR,
    ROOT,
    SEE_RESIDUALS,
    SQUARES,
    START,
    X,
    Y,
    bowl,
    contraction,
    cubic,
    decay,
    fast_but,
    number,
    polished_by_hand,
    slow,
)

FEW = settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])
MANY = settings(FEW, max_examples=400)


def alike(base: Outcome, other: Outcome, truth: tuple[Tensor, Tensor], unit: float = 1.0, steps: bool = True) -> None:
    """The same statuses, steps ±1, and both right, value and gradient. ``unit`` is that of the other's z."""
    assert base.silent, base.words
    assert other.silent, (other.words, other.info.status)
    if steps:
        assert abs(int(base.info.steps) - int(other.info.steps)) <= 1, (base.info.steps, other.info.steps)
    for result, by in ((base, 1.0), (other, unit)):
        z, gradient = result.z.double() / by, result.gradient.double() / by
        assert right(z.to(result.z.dtype), truth[0], factor=10), (z, truth[0])
        assert right(gradient.to(result.z.dtype), truth[1], factor=100), (gradient, truth[1])


def solve_root(
    solver: Any, dtype: torch.dtype, factor: float = 1.0, by: Tensor | None = None, unit: float = 1.0
) -> Outcome:
    """The root of the cubic with g multiplied by a number or a matrix, and z in another unit."""

    def g(z: Tensor, x: Tensor) -> Tensor:
        value = factor * cubic(z / unit, x)
        return value if by is None else by @ value

    eps = torch.finfo(dtype).eps
    return outcome(ti.root, g, unit * START.to(dtype), X.to(dtype), solver=solver, atol=eps * unit)


root_as_it_is = cache(solve_root)  # by solver and dtype: what another unit is compared with is solved once


def powers(dtype: str) -> st.SearchStrategy[float]:
    limit = DTYPES[dtype][1]
    return st.integers(-limit, limit).map(lambda k: 2.0**k)


# The unit of g


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=slow)], ids=["few", "many"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_unit_of_g(dtype: str, examples: settings) -> None:
    @examples
    @given(name=st.sampled_from(sorted(EQUATIONS)), factor=powers(dtype), sign=st.sampled_from([1.0, -1.0]))
    def check(name: str, factor: float, sign: float) -> None:
        solver, kind = EQUATIONS[name], DTYPES[dtype][0]
        if name in ("pseudo_transient", "auto"):  # the flow dz/dt = −g has a direction
            sign = 1.0
        alike(root_as_it_is(solver, kind), solve_root(solver, kind, factor=sign * factor), ROOT)

    check()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EQUATIONS)
def test_the_extreme_units_of_g(name: str, dtype: str) -> None:
    kind, limit = DTYPES[dtype]
    for factor in (2.0**-limit, 2.0**limit):
        alike(root_as_it_is(EQUATIONS[name], kind), solve_root(EQUATIONS[name], kind, factor=factor), ROOT)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", [*BRACKETS, "auto"])
def test_the_unit_of_g_of_one_unknown(solver: str, dtype: str) -> None:
    kind, limit = DTYPES[dtype]
    x, start = torch.tensor([5.0], dtype=kind), torch.tensor([0.3], dtype=kind)
    truth = polished_by_hand(number, torch.ones(1, dtype=D), x.double())

    def run(factor: float) -> Outcome:
        return outcome(ti.root, lambda z, x: factor * number(z, x), start, x, solver=solver, batch_ndim=1)

    base = run(1.0)
    assert base.silent.all()
    for exponent in (-limit, -7, limit // 2, limit):
        other = run(2.0**exponent)
        assert other.silent.all(), other.words
        assert abs(int(base.info.steps) - int(other.info.steps)) <= 1
        for result in (base, other):
            assert right(result.z, truth[0], factor=2)
            assert right(result.gradient, truth[1], factor=10)


def test_the_default_of_many_unknowns_is_right_in_every_unit() -> None:
    """From n = 64 it begins without a Jacobian, beyond n = 256 there is none: the steps may differ, the answer may not."""
    for n in (70, 300):
        draw = torch.Generator().manual_seed(n)
        W = torch.randn(n, n, dtype=D, generator=draw) / (3 * n**0.5)
        x = torch.randn(n, dtype=D, generator=draw)

        def g(z: Tensor, x: Tensor, W: Tensor = W) -> Tensor:
            return z - torch.tanh(W @ z + x)

        truth = polished_by_hand(g, x, x)
        for factor in (2.0**-300, 1e-8, 1.0, 1e8, 2.0**300):
            result = outcome(ti.root, lambda z, x, factor=factor, g=g: factor * g(z, x), torch.zeros(n, dtype=D), x)
            assert result.silent, (n, factor, result.words)
            assert right(result.z, truth[0])
            assert right(result.gradient, truth[1], factor=1e3)


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=slow)], ids=["few", "many"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_equation_in_a_unit_of_its_own(dtype: str, examples: settings) -> None:
    @examples
    @given(solver=st.sampled_from([*AFFINE, "auto"]), exponents=st.tuples(*[st.floats(-8, 8)] * 3))
    def check(solver: str, exponents: tuple[float, ...]) -> None:
        kind = DTYPES[dtype][0]
        by = torch.diag(10 ** torch.tensor(exponents, dtype=kind))
        alike(root_as_it_is(solver, kind), solve_root(solver, kind, by=by), ROOT)

    check()


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=slow)], ids=["few", "many"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_equations_mixed(dtype: str, examples: settings) -> None:
    """A g for a regular A, of condition 100 at most: products with it are rounded, which counts that much."""

    @examples
    @given(
        solver=st.sampled_from([*AFFINE, "auto"]),
        seed=st.integers(0, 10**6),
        spread=st.floats(1, 100),
        factor=powers(dtype),
    )
    def check(solver: str, seed: int, spread: float, factor: float) -> None:
        kind = DTYPES[dtype][0]
        draw = torch.Generator().manual_seed(seed)
        U, V = (torch.linalg.qr(torch.randn(3, 3, dtype=D, generator=draw))[0] for _ in range(2))
        by = (U * torch.tensor([spread, spread**0.5, 1.0], dtype=D)) @ V * factor
        alike(root_as_it_is(solver, kind), solve_root(solver, kind, by=by.to(kind)), ROOT)

    check()


# The unit of an objective, and of residuals


def solve_minimum(
    solver: str, dtype: torch.dtype, factor: float = 1.0, shift: float = 0.0, unit: float = 1.0
) -> Outcome:
    eps = torch.finfo(dtype).eps

    def phi(z: Tensor, x: Tensor) -> Tensor:
        return factor * bowl(z / unit, x) + shift

    options = {"bounds": (-1e3 * unit, 1e3 * unit), "solver": "auto"} if solver == "bounded" else {"solver": solver}
    return outcome(ti.minimize, phi, unit * NEAR.to(dtype), X.to(dtype), atol=eps * unit, **options)


minimum_as_it_is = cache(solve_minimum)


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=slow)], ids=["few", "many"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_unit_of_an_objective(dtype: str, examples: settings) -> None:
    @examples
    @given(solver=st.sampled_from([*MINIMISERS, "bounded"]), factor=powers(dtype))
    def check(solver: str, factor: float) -> None:
        kind = DTYPES[dtype][0]
        alike(minimum_as_it_is(solver, kind), solve_minimum(solver, kind, factor=factor), LEAST)

    check()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", fast_but(LONG, [*MINIMISERS, "bounded"]))
def test_the_extreme_units_of_an_objective(solver: str, dtype: str) -> None:
    kind, limit = DTYPES[dtype]
    for factor in (2.0**-limit, 2.0**limit):
        alike(minimum_as_it_is(solver, kind), solve_minimum(solver, kind, factor=factor), LEAST)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", fast_but(LONG, [*MINIMISERS, "bounded"]))
def test_what_is_added_to_an_objective(solver: str, dtype: str) -> None:
    """Beside 1e6 and more the values show nothing of the way to the minimum: other steps are refused, no other end is found."""
    kind = DTYPES[dtype][0]
    for factor, shift in ((1.0, 1.0), (2.0**-30, 3.0), (2.0**30, -1e12)):
        base, other = minimum_as_it_is(solver, kind), solve_minimum(solver, kind, factor=factor, shift=shift)
        alike(base, other, LEAST, steps=abs(shift) <= factor)


def solve_fit(solver: str, dtype: torch.dtype, factor: float = 1.0, unit: float = 1.0) -> Outcome:
    eps = torch.finfo(dtype).eps
    start = torch.tensor([2.0, 1.0], dtype=dtype)
    options = {"bounds": (-1e3 * unit, 1e3 * unit), "solver": "auto"} if solver == "bounded" else {"solver": solver}

    def r(z: Tensor, y: Tensor) -> Tensor:
        return factor * decay(z / unit, y)

    return outcome(ti.least_squares, r, unit * start, Y.to(dtype), atol=eps * unit, **options)


fit_as_it_is = cache(solve_fit)


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=slow)], ids=["few", "many"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_unit_of_residuals(dtype: str, examples: settings) -> None:
    @examples
    @given(solver=st.sampled_from([*SQUARES, "bounded"]), factor=powers(dtype))
    def check(solver: str, factor: float) -> None:
        kind = DTYPES[dtype][0]
        factor = factor if solver in SEE_RESIDUALS else factor**0.5
        alike(fit_as_it_is(solver, kind), solve_fit(solver, kind, factor=factor), FIT)

    check()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", fast_but(LONG, [*SQUARES, "bounded"]))
def test_the_extreme_units_of_residuals(solver: str, dtype: str) -> None:
    kind, limit = DTYPES[dtype]
    limit = limit if solver in SEE_RESIDUALS else limit // 2
    for factor in (2.0**-limit, 2.0**limit):
        alike(fit_as_it_is(solver, kind), solve_fit(solver, kind, factor=factor), FIT)


# The unit of z


def units_of_z(dtype: str) -> list[float]:
    return [2.0**-100, 2.0**-20, 2.0**20, 2.0**100] if dtype == "double" else [2.0**-20, 2.0**-7, 2.0**7, 2.0**20]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EQUATIONS)
def test_the_unit_of_the_unknowns_of_a_root(name: str, dtype: str) -> None:
    kind = DTYPES[dtype][0]
    base = root_as_it_is(EQUATIONS[name], kind)
    for unit in units_of_z(dtype):
        alike(base, solve_root(EQUATIONS[name], kind, unit=unit), ROOT, unit=unit)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["auto", *GENERAL])
def test_the_unit_of_a_fixed_point(name: str, dtype: str) -> None:
    kind = DTYPES[dtype][0]

    def run(unit: float) -> Outcome:
        atol = unit * torch.finfo(kind).eps
        f = lambda z, x: unit * contraction(z / unit, x)  # noqa: E731
        return outcome(ti.fixed_point, f, unit * START.to(kind), X.to(kind), solver=name, atol=atol)

    base = run(1.0)
    for unit in units_of_z(dtype):
        alike(base, run(unit), FIXED, unit=unit)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", fast_but(LONG, [*MINIMISERS, "bounded"]))
def test_the_unit_of_the_unknowns_of_a_minimum(solver: str, dtype: str) -> None:
    kind = DTYPES[dtype][0]
    base = minimum_as_it_is(solver, kind)
    for unit in units_of_z(dtype):
        alike(base, solve_minimum(solver, kind, unit=unit), LEAST, unit=unit)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", fast_but(LONG, [*SQUARES, "bounded"]))
def test_the_unit_of_the_unknowns_of_a_fit(solver: str, dtype: str) -> None:
    kind = DTYPES[dtype][0]
    base = fit_as_it_is(solver, kind)
    for unit in units_of_z(dtype):
        alike(base, solve_fit(solver, kind, unit=unit), FIT, unit=unit)
