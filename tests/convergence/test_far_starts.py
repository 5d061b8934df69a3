"""From a start far away, what is called converged is the solution: a g that is small beside that at the start says nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

import torchimplicit as ti

from ..every_solver import DOWNHILL, GENERAL, ONE_UNKNOWN, PARTICULAR
from .outcomes import FACTOR, D, Outcome, S, error, outcome, polished, right, silently_wrong, tolerance

ROOTS = [*GENERAL, *(name for name, why in PARTICULAR.items() if why == ONE_UNKNOWN)]
DESCENTS = ["auto", *(name for name, why in PARTICULAR.items() if why == DOWNHILL and name != "projected_newton")]
slow = pytest.mark.slow


@dataclass(frozen=True)
class Equation:
    """g(z, x) = 0 in one unknown with one root at x, a number with a closed form, and dz/dx as a function of z."""

    g: Callable[[Tensor, Tensor], Tensor]
    x: float
    root: float
    slope: Callable[[Tensor], Tensor]
    starts: tuple[float, ...]


CUBIC = float(next(z.real for z in np.roots([1, 0, 1, -5]) if z.imag == 0))
EQUATIONS = {
    "exponential": Equation(
        lambda z, x: z.exp() - x, 2.0, math.log(2), lambda z: (-z).exp(), (30.0, -30.0, 5.0, -5.0, 80.0)
    ),
    "cubic": Equation(lambda z, x: z**3 + z - x, 5.0, CUBIC, lambda z: 1 / (3 * z**2 + 1), (1e3, -1e3, 1e6, -1e6, 1e9)),
    "logarithm": Equation(lambda z, x: z.log() - x, 1.0, math.e, lambda z: z, (1e-6, 1e-30, 10.0, 1e6, 1e30)),
    "reciprocal": Equation(lambda z, x: 1 / z - x, 4.0, 0.25, lambda z: -(z**2), (1e-6, 1.0, 1e3, 1e6)),
    "square root": Equation(lambda z, x: z.sqrt() - x, 3.0, 9.0, lambda z: 2 * z.sqrt(), (1e-6, 1e3, 1e6, 1e12)),
    "arctangent": Equation(
        lambda z, x: (z - 1).atan() - x, 0.5, 1 + math.tan(0.5), lambda z: 1 + (z - 1) ** 2, (3.0, 10.0, -1e3, 1e6)
    ),
    "ninth power": Equation(
        lambda z, x: z**9 - x, 0.2, 0.2 ** (1 / 9), lambda z: 1 / (9 * z**8), (0.01, 0.1, 10.0, 1e3)
    ),
    # These two vanish at infinity too, where there is no root.
    "falling off": Equation(
        lambda z, x: (z - 1) / (1 + (z - 1) ** 2) - x,
        0.0,
        1.0,
        lambda z: 1 / (2 - z.square()),
        (1.5, 3.0, 10.0, -1e3, 1e6),
    ),
    "decaying": Equation(lambda z, x: (z - 1) * (1 - z).exp() - x, 0.0, 1.0, lambda z: 1 / (2 - z), (1.9, 3.0, 10.0)),
}
FOUND_BY_DEFAULT = ["exponential", "cubic", "square root", "arctangent", "ninth power"]


def run(equation: Equation, solver: str, dtype: torch.dtype) -> Outcome:
    """All starts at once, each a system of its own."""
    start = torch.tensor(equation.starts, dtype=dtype)
    return outcome(ti.root, equation.g, start, torch.full_like(start, equation.x), solver=solver, batch_ndim=1)


def check(equation: Equation, result: Outcome, by_plain_steps: bool = False) -> None:
    """What converged without a word is the root, and its gradient that of the root, as far as it is known.

    Where g is 0 to the last bit, which far away it is by underflow, nobody can know that it is none; nor a method of plain steps
    z − g, where these leave z as it is to the last bit.
    """
    truth = torch.full_like(result.z, equation.root)
    assert result.gradient is not None
    exact = torch.tensor(equation.root, dtype=D)
    beside = exact + FACTOR * tolerance(exact.to(result.z.dtype)) * torch.tensor([-1.0, 1.0], dtype=D)
    allowed = (equation.slope(beside) - equation.slope(exact)).abs().max()
    allowed = allowed + FACTOR * torch.finfo(result.z.dtype).eps ** 0.5 * equation.slope(exact).abs()
    bad = ~((result.gradient.double() - equation.slope(exact)).abs() <= allowed)
    report = (equation.starts, result.z, result.gradient, result.info.status)
    g = equation.g(result.z, torch.full_like(result.z, equation.x))
    known = (result.z - g != result.z) if by_plain_steps else g != 0
    assert not silently_wrong(result, known & ~right(result.z, truth, rows=True), known & bad), report


@pytest.mark.sampled(11)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("name", EQUATIONS)
@pytest.mark.parametrize(
    "solver",
    ["auto", *(pytest.param(s, marks=[slow] * (s not in ("newton", "chandrupatla"))) for s in ROOTS)],
)
def test_no_start_makes_a_root_of_what_is_none(solver: str, name: str, dtype: torch.dtype) -> None:
    check(EQUATIONS[name], run(EQUATIONS[name], solver, dtype), solver in ("picard", "anderson", "broyden"))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("name", FOUND_BY_DEFAULT)
def test_the_default_finds_the_root_from_every_start(name: str, dtype: torch.dtype) -> None:
    result = run(EQUATIONS[name], "auto", dtype)
    assert result.silent.all(), result.words
    check(EQUATIONS[name], result)


@pytest.mark.parametrize("start", [30.0, -30.0])
def test_one_system_alone_is_found_from_afar(start: float) -> None:
    result = outcome(ti.root, lambda z, x: z.exp() - x, torch.tensor(start, dtype=D), torch.tensor(2.0, dtype=D))
    assert result.silent
    assert float(result.z) == pytest.approx(math.log(2), rel=1e-7)
    assert float(result.gradient) == pytest.approx(0.5, rel=1e-7)


# Systems


def circle(z: Tensor, x: Tensor) -> Tensor:
    """z = ±√(x/2) (1, 1)."""
    return torch.stack([z[..., 0] ** 2 + z[..., 1] ** 2 - x, z[..., 0] - z[..., 1]], -1)


COUPLED = torch.eye(5, dtype=D) + 0.1 * torch.randn(5, 5, dtype=D, generator=torch.Generator().manual_seed(0)).triu(-1)
TARGET = torch.tensor([2.0, -1.0, 0.5, 3.0, -4.0], dtype=D)


def coupled(z: Tensor, x: Tensor) -> Tensor:
    """Five equations with a matrix that is not symmetric; one root."""
    return z @ COUPLED.to(z.dtype).mT + z**3 - x


@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize(
    "solver", ["auto", *(pytest.param(s, marks=[slow] * (s not in ("newton", "newton_krylov"))) for s in GENERAL)]
)
def test_coupled_equations_are_solved_from_afar_or_it_is_said(solver: str, dtype: torch.dtype) -> None:
    sizes = torch.tensor([1.0, 1e2, 1e4, 1e6], dtype=dtype)
    starts = sizes[:, None] * torch.tensor([1.0, 0.3], dtype=dtype)
    two = outcome(ti.root, circle, starts, torch.full_like(sizes, 8.0), solver=solver, batch_ndim=1)
    truth = 2 * two.z.sign()
    assert not silently_wrong(two, ~right(two.z, truth, rows=True)), (two.z, two.info.status)

    starts = sizes[:, None] * torch.tensor([1.0, -0.5, 0.25, 1.0, 0.5], dtype=dtype)
    x = TARGET.to(dtype).expand(4, 5)
    five = outcome(ti.root, coupled, starts, x, solver=solver, batch_ndim=1)
    root = torch.as_tensor(
        scipy.optimize.fsolve(lambda z: coupled(torch.as_tensor(z), TARGET).numpy(), np.ones(5), xtol=1e-14)
    )
    jacobian = COUPLED + 3 * torch.diag(root**2)
    gradient = torch.linalg.solve(jacobian.mT, torch.ones(5, dtype=D)).expand(4, 5)
    bad = ~right(five.gradient.to(dtype), gradient, rows=True, factor=1e3)
    report = (five.z, five.gradient, five.info.status)
    assert not silently_wrong(five, ~right(five.z, root.expand(4, 5), rows=True), bad), report
    if solver == "auto":
        assert two.silent.all()
        assert five.silent.all()


# Minima


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("steepness", [1e4, pytest.param(1e8, marks=slow)])
@pytest.mark.parametrize(
    "solver",
    [
        *DESCENTS,
        *(
            pytest.param(s, marks=slow)
            for s in ("newton", "chord", "newton_krylov", "pseudo_transient", "broyden", "anderson")
        ),
    ],
)
def test_a_steep_direction_does_not_hide_a_flat_one(solver: str, steepness: float, dtype: torch.dtype) -> None:
    """The gradient falls by the factor steepness² in one step, and nothing is found of the flat direction."""

    def phi(z: Tensor, x: Tensor) -> Tensor:
        return (z[..., 0] - x) ** 4 + (z[..., 0] - x) ** 2 + (steepness * z[..., 1] - 1) ** 2

    starts = torch.tensor([[3.0, 5.0], [-2.0, 1.0], [30.0, -3.0], [1.5, 0.1]], dtype=dtype)
    result = outcome(ti.minimize, phi, starts, torch.ones(4, dtype=dtype), solver=solver, batch_ndim=1)
    truth = torch.tensor([1.0, 1 / steepness], dtype=D).expand(4, 2)
    bad = ~((result.gradient - 1).abs() <= FACTOR * torch.finfo(dtype).eps ** 0.5)
    report = (result.z, result.gradient, result.info.status)
    assert not silently_wrong(result, ~right(result.z, truth, rows=True), bad), report
    if solver == "auto":
        assert result.silent.all(), result.words


def rosenbrock(z: Tensor) -> Tensor:
    return (100 * (z[..., 1:] - z[..., :-1] ** 2) ** 2 + (1 - z[..., :-1]) ** 2).sum(-1)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("n", [2, 5, 10])
@pytest.mark.parametrize(
    "solver", [pytest.param(s, marks=[slow] * (s == "nonlinear_cg")) for s in DESCENTS if s != "auto"]
)
def test_the_valley_of_rosenbrock_is_followed_to_its_end_in_single_precision(solver: str, n: int) -> None:
    """From ordinary starts. Beyond three unknowns there is a second minimum, near (−1, 1, ..., 1)."""
    starts = 2 * torch.rand(8, n, generator=torch.Generator().manual_seed(n)) - 0.5
    starts[0] = torch.tensor([-1.2, 1.0]).repeat(n)[:n]
    result = outcome(ti.minimize, rosenbrock, starts, solver=solver, batch_ndim=1)
    minima = torch.stack([polished(torch.func.grad(rosenbrock), z) for z in result.z])
    assert ((minima - 1).abs().amax(-1).le(1e-9) | (minima[:, 0] + 1).abs().le(0.1)).logical_or(~result.silent).all()
    wrong = ~right(result.z, minima, rows=True, factor=10)
    assert not silently_wrong(result, wrong), (error(result.z, minima, rows=True), result.info.status)
    if solver in ("trust_newton", "newton_cg", "bfgs"):
        assert result.silent.all(), result.words


@pytest.mark.parametrize(
    "solver", ["auto", *(pytest.param(s, marks=slow) for s in ("gauss_newton", "dogleg", "trust_newton", "lbfgs"))]
)
@pytest.mark.parametrize("dtype", [D, S])
def test_a_fit_from_afar_is_right_or_it_is_said(dtype: torch.dtype, solver: str) -> None:
    """z₁ exp(−z₂ t) through observations that a curve has made: the parameters are known."""
    t = torch.linspace(0, 2, 15, dtype=dtype)
    y = 3 * (-1.5 * t).exp()
    starts = torch.tensor([[1.0, 1.0], [100.0, 0.1], [-50.0, 5.0], [1e4, -1.0]], dtype=dtype)
    x = y.expand(4, -1)
    result = outcome(
        ti.least_squares, lambda z, x: z[..., :1] * (-z[..., 1:] * t).exp() - x, starts, x, solver=solver, batch_ndim=1
    )
    truth = torch.tensor([3.0, 1.5], dtype=D).expand(4, 2)
    assert not silently_wrong(result, ~right(result.z, truth, rows=True)), (result.z, result.info.status)
