"""In a bracket the sign of g decides, not its size: what counts is how narrow the bracket has become."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import torchimplicit as ti
from torchimplicit.solvers import ITP, Bisection, Chandrupatla

from .outcomes import D, S, error, outcome, right, silently_wrong, tolerance

METHODS = [Bisection, Chandrupatla, ITP]
slow = pytest.mark.slow

# g, the ends, and the only root between them.
Case = tuple[Callable[[Tensor], Tensor], float, float, float]
CASES: dict[str, Case] = {
    "exponential": (lambda z: z.exp() - 2, 0.0, 100.0, math.log(2)),
    "cubic": (lambda z: z**3 + z - 10, -1e3, 1e6, 2.0),
    "line": (lambda z: z - 0.3, -1.0, 2.0, 0.3),
    "steep": (lambda z: ((z - 0.3) * 1e4).tanh(), -1.0, 2.0, 0.3),
    "flat": (lambda z: (z - 0.3) ** 5, -1.0, 2.0, 0.3),
    "falling": (lambda z: 1 / z - 4, 1e-3, 1e3, 0.25),
    "large": (lambda z: z - 3e20, 0.0, 1e22, 3e20),
}
TINY: dict[str, Case] = {
    "exponential": (lambda z: z.exp() - 1.9e-174, -450.0, -350.0, math.log(1.9e-174)),
    "line": (lambda z: 1e-200 * (z - 1.5), -3.0, 4.0, 1.5),
    "Gaussian tail": (lambda z: (-z * z / 2).exp() - math.exp(-450), 1.0, 37.0, 30.0),
    "logistic": (lambda z: z.sigmoid() - 1e-100, -300.0, 0.0, math.log(1e-100)),
}
TINY_SINGLE: dict[str, Case] = {
    "exponential": (lambda z: z.exp() - 1e-30, -80.0, -60.0, math.log(1e-30)),
    "line": (lambda z: 1e-20 * (z - 1.5), -3.0, 4.0, 1.5),
    "logistic": (lambda z: z.sigmoid() - 1e-15, -40.0, 0.0, math.log(1e-15)),
}


@pytest.mark.parametrize("method", METHODS)
def test_values_below_every_epsilon_have_a_sign(method: type) -> None:
    for dtype, cases in ((D, TINY), (S, TINY_SINGLE)):
        for name, (g, a, b, root) in cases.items():
            starts = a + torch.tensor([0.0, 0.1, 0.5, 1.0], dtype=dtype) * (b - a)
            result = outcome(ti.root, g, starts, solver=method(a, b), batch_ndim=1)
            assert result.silent.all(), (name, result.words)
            assert right(result.z, torch.full_like(result.z, root, dtype=D), rows=True, factor=2).all(), (
                name,
                result.z,
            )


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_of_a_root_of_tiny_values(method: type) -> None:
    x = torch.tensor(1.9e-174, dtype=D)
    result = outcome(ti.root, lambda z, x: z.exp() - x, torch.tensor(-400.0, dtype=D), x, solver=method(-450.0, -350.0))
    assert result.silent, result.words
    assert float(result.gradient * x) == pytest.approx(1, rel=1e-5)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_the_root_is_found_to_tolerance_from_every_start_in_the_bracket(
    method: type, name: str, dtype: torch.dtype
) -> None:
    g, a, b, root = CASES[name]
    shares = torch.tensor([0.0, 1e-6, 0.25, 0.5, 0.9, 1.0], dtype=dtype)
    starts = torch.cat([a + shares * (b - a), torch.tensor([root], dtype=dtype)])
    result = outcome(ti.root, g, starts, solver=method(a, b), batch_ndim=1)
    assert result.silent.all(), (result.words, result.z)
    assert right(result.z, torch.full_like(result.z, root, dtype=D), rows=True, factor=2).all(), result.z


@pytest.mark.parametrize("examples", [10, pytest.param(40, marks=slow)])
def test_neither_the_start_nor_the_size_of_g_plays_a_part(examples: int) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True, phases=[Phase.generate])
    @given(
        method=st.sampled_from(METHODS),
        name=st.sampled_from(sorted(CASES)),
        share=st.floats(0, 1),
        exponent=st.integers(-300, 300),
    )
    def check(method: type, name: str, share: float, exponent: int) -> None:
        g, a, b, _ = CASES[name]
        factor = 2.0**exponent
        if name in ("cubic", "large", "flat"):  # their values reach 1e18 and 1e22, and 1e-40
            factor = 2.0 ** (exponent / 2)
        middle = ti.root(g, torch.tensor((a + b) / 2, dtype=D), solver=method(a, b))
        other = ti.root(lambda z: factor * g(z), torch.tensor(a + share * (b - a), dtype=D), solver=method(a, b))
        assert other.info.status == middle.info.status == ti.Status.CONVERGED
        assert error(other.value, middle.value) <= 2 * tolerance(middle.value)

    check()


@pytest.mark.parametrize("method", METHODS)
def test_of_several_roots_the_same_is_found_from_every_start(method: type) -> None:
    starts = torch.linspace(-4, 11, 16, dtype=D)
    result = outcome(ti.root, torch.sin, starts, solver=method(-4.0, 11.0), batch_ndim=1)
    assert result.silent.all()
    assert (result.z - result.z[0]).abs().max() <= 2 * tolerance(result.z[:1])
    assert error(result.z.sin(), torch.zeros(16, dtype=D)) <= 1e-6


JUMPS: dict[str, Callable[[Tensor], Tensor]] = {
    "jump": lambda z: torch.where(z > 0.3, 1.0, -1.0).to(z.dtype),
    "jump beside a slope": lambda z: torch.where(z > 0.3, z + 1, z - 2),
    "small step up, large beside": lambda z: torch.where(z > 0.3, 1e-3, -1.0).to(z.dtype) * (1 + z**2),
    "pole": lambda z: 1 / (z - 0.3),
    "third order": lambda z: (z - 0.3) ** -3,
    "tangent": lambda z: (z - 0.3 + torch.pi / 2).tan(),
}


@pytest.mark.sampled(7)
@pytest.mark.parametrize(
    ("unit", "start"), [("one", 0.31), ("tiny", 1.5), *(pytest.param(f, -1.0, marks=slow) for f in ("one", "huge"))]
)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("method", METHODS)
def test_a_jump_or_a_pole_is_no_root_in_any_unit(method: type, dtype: torch.dtype, unit: str, start: float) -> None:
    exponent = 200 if dtype == D else 15
    factor = {"tiny": 10.0**-exponent, "one": 1.0, "huge": 10.0**exponent}[unit]
    for name, g in JUMPS.items():
        result = outcome(
            ti.root, lambda z, g=g: factor * g(z), torch.tensor(start, dtype=dtype), solver=method(-1.0, 1.5)
        )
        assert not result.info.converged, (name, result.z)
        assert result.words


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_steep_or_bent_is_a_root(method: type, dtype: torch.dtype) -> None:
    bends: dict[str, Callable[[Tensor], Tensor]] = {
        "steep": lambda z: 1e3 * (z - 0.3),
        "arctangent": lambda z: (1e3 * (z - 0.3)).atan(),
        "kink": lambda z: torch.where(z > 0.3, 100 * (z - 0.3), z - 0.3),
        "cube root": lambda z: (z - 0.3).sign() * (z - 0.3).abs() ** (1 / 3),
    }
    if dtype == D:
        bends["fifth root"] = lambda z: (z - 0.3).sign() * (z - 0.3).abs() ** 0.2
    for name, g in bends.items():
        result = outcome(ti.root, g, torch.tensor(-1.0, dtype=dtype), solver=method(-1.0, 2.0))
        assert result.silent, (name, result.words)
        assert right(result.z, torch.tensor(0.3, dtype=D), factor=2), (name, result.z)


@pytest.mark.parametrize("method", METHODS)
def test_every_system_has_its_own_bracket_and_its_own_unit(method: type) -> None:
    units = torch.tensor([1e-250, 1e-100, 1e-8, 1.0, 1e8, 1e100, 1e250], dtype=D)
    roots = torch.tensor([1.0, -2e-3, 5e5, 3.0, -0.25, 1e30, 7e-10], dtype=D)
    lower, upper = roots - 3 * roots.abs(), roots + 7 * roots.abs()
    result = outcome(
        ti.root, lambda z, x: units * (z / x - 1), lower, roots, solver=method(lower, upper), batch_ndim=1, atol=0.0
    )
    assert result.silent.all(), result.words
    torch.testing.assert_close(result.z, roots, rtol=2 * torch.finfo(D).eps ** 0.5, atol=0)
    torch.testing.assert_close(result.gradient, torch.ones(7, dtype=D), rtol=1e-6, atol=0)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("method", METHODS)
def test_a_bracket_as_wide_as_the_numbers(method: type, dtype: torch.dtype) -> None:
    largest = 0.9 * torch.finfo(dtype).max
    result = outcome(
        ti.root, lambda z: (z - 3) / largest, torch.tensor(1e10, dtype=dtype), solver=method(-largest, largest)
    )
    wrong = ~right(result.z, torch.tensor(3.0, dtype=D), factor=2)
    assert not silently_wrong(result, wrong), (result.z, result.info.status)


@pytest.mark.parametrize("solver", ["auto", "bisection", "chandrupatla", "itp"])
def test_where_a_bracket_is_sought_the_sign_decides_too(solver: str) -> None:
    """From 0, in the unit of g in which everything seen is below epsilon."""
    for factor in (1.0, 1e-100, 1e100):
        result = outcome(
            ti.root, lambda z, factor=factor: factor * (z**3 - 8), torch.tensor(0.5, dtype=D), solver=solver
        )
        assert result.silent, result.words
        assert right(result.z, torch.tensor(2.0, dtype=D), factor=2), (factor, result.z)
