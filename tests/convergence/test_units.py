"""No unit plays a part: not that of g, of an objective or of residuals, nor that of z; nor do the other numbers beside one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import torchimplicit as ti
from torchimplicit.solvers import Backtracking, Broyden, Newton

from ..every_solver import GENERAL
from .outcomes import D, Outcome, S, error, outcome, right, tolerance

slow = pytest.mark.slow


def fast_but(slow_ones: set[str], names: list[str]) -> list[Any]:
    """All of them, some marked slow."""
    return [pytest.param(name, marks=[slow] * (name in slow_ones)) for name in names]


FEW = settings(max_examples=25, deadline=None, derandomize=True, phases=[Phase.generate])
MANY = settings(FEW, max_examples=400)

# Their plain steps z − g(z), or a first inverse Jacobian that is the identity, are those of a g that has z's unit.
UNIT_OF_Z = {"broyden", "anderson", "picard"}
LINE_SEARCH = Newton(line_search=Backtracking())
EQUATIONS: dict[str, Any] = {name: name for name in GENERAL if name not in UNIT_OF_Z} | {
    "auto": "auto",
    "newton with a line search": LINE_SEARCH,
    "broyden from a jacobian": Broyden(start="jacobian"),
}
AFFINE = ["newton", "chord"]  # what they do is the same for every A g
BRACKETS = ["bisection", "chandrupatla", "itp"]
MINIMISERS = [
    "auto",
    "newton_cg",
    "bfgs",
    "lbfgs",
    "nonlinear_cg",
    "newton",
    "chord",
    "newton_krylov",
    "pseudo_transient",
]
SQUARES = ["auto", "gauss_newton", "dogleg", *MINIMISERS[1:]]

LONG = {"nonlinear_cg", "pseudo_transient", "newton_krylov", "chord"}

DTYPES = {"double": (D, 300), "single": (S, 40)}
A = torch.tensor([[1.3, 0.4, -0.2], [-0.3, 0.9, 0.1], [0.2, -0.5, 1.1]], dtype=D)
H = torch.tensor([[3.0, 0.5, -0.3], [0.5, 1.0, 0.2], [-0.3, 0.2, 0.6]], dtype=D)
X = torch.tensor([1.0, -2.0, 0.5], dtype=D)
T = torch.linspace(0, 2, 12, dtype=D)
Y = 3 * (-1.5 * T).exp() + 0.1 * (7 * T).sin()  # no curve goes through all of them


def cubic(z: Tensor, x: Tensor) -> Tensor:
    return A.to(z.dtype) @ z + 0.1 * z**3 - x


def bowl(z: Tensor, x: Tensor) -> Tensor:
    return z @ H.to(z.dtype) @ z / 2 + (z**4).sum() / 40 - x @ z


def decay(z: Tensor, y: Tensor) -> Tensor:
    return z[0] * (-z[1] * T.to(z.dtype)).exp() - y


def number(z: Tensor, x: Tensor) -> Tensor:
    return z**3 + z - x


def contraction(z: Tensor, x: Tensor) -> Tensor:
    return 0.4 * torch.tanh(A.to(z.dtype) @ z) + x


def polished_by_hand(jacobian_of: Callable[..., Tensor], z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The root in float64 and the gradient of its sum in x, by dense linear algebra."""
    for _ in range(100):
        step = torch.linalg.solve(torch.func.jacrev(jacobian_of)(z, x), jacobian_of(z, x))
        z = z - step
        if step.abs().max() <= 1e-13 * z.abs().max():
            break
    J, K = torch.func.jacrev(jacobian_of, argnums=(0, 1))(z, x)
    return z, -K.mT @ torch.linalg.solve(J.mT, torch.ones_like(z))


START = torch.tensor([0.5, 0.3, -0.4], dtype=D)
NEAR = torch.tensor([1.0, -2.0, 2.0], dtype=D)  # from where a chord finds the minimum too
ROOT = polished_by_hand(cubic, START, X)
LEAST = polished_by_hand(torch.func.grad(bowl), START, X)
FIT = polished_by_hand(
    torch.func.grad(lambda z, y: decay(z, y).square().sum() / 2), torch.tensor([3.0, 1.5], dtype=D), Y
)
FIXED = polished_by_hand(lambda z, x: z - contraction(z, x), START, X)


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
        alike(solve_root(solver, kind), solve_root(solver, kind, factor=sign * factor), ROOT)

    check()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EQUATIONS)
def test_the_extreme_units_of_g(name: str, dtype: str) -> None:
    kind, limit = DTYPES[dtype]
    for factor in (2.0**-limit, 2.0**limit):
        alike(solve_root(EQUATIONS[name], kind), solve_root(EQUATIONS[name], kind, factor=factor), ROOT)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", [*BRACKETS, "auto"])
def test_the_unit_of_g_of_one_unknown(solver: str, dtype: str) -> None:
    kind, limit = DTYPES[dtype]
    x, start = torch.tensor([5.0], dtype=kind), torch.tensor([0.3], dtype=kind)
    truth = polished_by_hand(number, torch.ones(1, dtype=D), x.double())

    def run(factor: float) -> Outcome:
        return outcome(ti.root, lambda z, x: factor * number(z, x), start, x, solver=solver, batch_ndim=1)

    for exponent in (-limit, -7, limit // 2, limit):
        base, other = run(1.0), run(2.0**exponent)
        assert base.silent.all()
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
        alike(solve_root(solver, kind), solve_root(solver, kind, by=by), ROOT)

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
        alike(solve_root(solver, kind), solve_root(solver, kind, by=by.to(kind)), ROOT)

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


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=slow)], ids=["few", "many"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_unit_of_an_objective(dtype: str, examples: settings) -> None:
    @examples
    @given(solver=st.sampled_from([*MINIMISERS, "bounded"]), factor=powers(dtype))
    def check(solver: str, factor: float) -> None:
        kind = DTYPES[dtype][0]
        alike(solve_minimum(solver, kind), solve_minimum(solver, kind, factor=factor), LEAST)

    check()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", fast_but(LONG, [*MINIMISERS, "bounded"]))
def test_the_extreme_units_of_an_objective(solver: str, dtype: str) -> None:
    kind, limit = DTYPES[dtype]
    for factor in (2.0**-limit, 2.0**limit):
        alike(solve_minimum(solver, kind), solve_minimum(solver, kind, factor=factor), LEAST)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", fast_but(LONG, [*MINIMISERS, "bounded"]))
def test_what_is_added_to_an_objective(solver: str, dtype: str) -> None:
    """Beside 1e6 and more the values show nothing of the way to the minimum: other steps are refused, no other end is found."""
    kind = DTYPES[dtype][0]
    for factor, shift in ((1.0, 1.0), (2.0**-30, 3.0), (2.0**30, -1e12)):
        base, other = solve_minimum(solver, kind), solve_minimum(solver, kind, factor=factor, shift=shift)
        alike(base, other, LEAST, steps=abs(shift) <= factor)


def solve_fit(solver: str, dtype: torch.dtype, factor: float = 1.0, unit: float = 1.0) -> Outcome:
    eps = torch.finfo(dtype).eps
    start = torch.tensor([2.0, 1.0], dtype=dtype)
    options = {"bounds": (-1e3 * unit, 1e3 * unit), "solver": "auto"} if solver == "bounded" else {"solver": solver}

    def r(z: Tensor, y: Tensor) -> Tensor:
        return factor * decay(z / unit, y)

    return outcome(ti.least_squares, r, unit * start, Y.to(dtype), atol=eps * unit, **options)


# They see the residuals themselves, and the others an objective, whose unit is the square of theirs.
SEE_RESIDUALS = {"auto", "gauss_newton", "dogleg"}


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=slow)], ids=["few", "many"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_unit_of_residuals(dtype: str, examples: settings) -> None:
    @examples
    @given(solver=st.sampled_from([*SQUARES, "bounded"]), factor=powers(dtype))
    def check(solver: str, factor: float) -> None:
        kind = DTYPES[dtype][0]
        factor = factor if solver in SEE_RESIDUALS else factor**0.5
        alike(solve_fit(solver, kind), solve_fit(solver, kind, factor=factor), FIT)

    check()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", fast_but(LONG, [*SQUARES, "bounded"]))
def test_the_extreme_units_of_residuals(solver: str, dtype: str) -> None:
    kind, limit = DTYPES[dtype]
    limit = limit if solver in SEE_RESIDUALS else limit // 2
    for factor in (2.0**-limit, 2.0**limit):
        alike(solve_fit(solver, kind), solve_fit(solver, kind, factor=factor), FIT)


# The unit of z


def units_of_z(dtype: str) -> list[float]:
    return [2.0**-100, 2.0**-20, 2.0**20, 2.0**100] if dtype == "double" else [2.0**-20, 2.0**-7, 2.0**7, 2.0**20]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EQUATIONS)
def test_the_unit_of_the_unknowns_of_a_root(name: str, dtype: str) -> None:
    kind = DTYPES[dtype][0]
    base = solve_root(EQUATIONS[name], kind)
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
    base = solve_minimum(solver, kind)
    for unit in units_of_z(dtype):
        alike(base, solve_minimum(solver, kind, unit=unit), LEAST, unit=unit)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", fast_but(LONG, [*SQUARES, "bounded"]))
def test_the_unit_of_the_unknowns_of_a_fit(solver: str, dtype: str) -> None:
    kind = DTYPES[dtype][0]
    base = solve_fit(solver, kind)
    for unit in units_of_z(dtype):
        alike(base, solve_fit(solver, kind, unit=unit), FIT, unit=unit)


# A right answer is not reported as a failure


@pytest.mark.sampled(3)
@pytest.mark.parametrize("factor", [1e-8, 1e-3, 1.0, 1e3, 1e8])
@pytest.mark.parametrize(
    "solver", ["auto", "newton", "chord", "newton_krylov", "dogleg", "levenberg_marquardt", "gauss_newton"]
)
def test_a_solution_is_recognised_in_single_precision(solver: str, factor: float) -> None:
    for n in (3, 20):
        draw = torch.Generator().manual_seed(n)
        M = torch.eye(n) + 0.3 * torch.randn(n, n, generator=draw) / n**0.5
        exact = torch.randn(n, generator=draw)
        b = M @ exact + 0.1 * exact**3
        g = lambda z, M=M, b=b: factor * (M @ z + 0.1 * z**3 - b)  # noqa: E731
        result = outcome(ti.root, g, exact, solver=solver)
        assert result.silent, result.words
        assert result.info.steps <= 1
        assert right(result.z, exact)


@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_a_large_objective_within_bounds_that_hold_nothing(scale: float, dtype: torch.dtype) -> None:
    target = torch.tensor([0.3, -1.0, 2.0, 0.7], dtype=dtype)
    weights = torch.tensor([1.0, 3.0, 0.5, 10.0], dtype=dtype)

    def phi(z: Tensor) -> Tensor:
        return scale * (weights * ((z - target) ** 2 + (z - target) ** 4)).sum()

    for start in (torch.zeros(4, dtype=dtype), target.clone(), torch.full((4,), 4.0, dtype=dtype)):
        result = outcome(ti.minimize, phi, start, bounds=(-5.0, 5.0))
        assert result.silent, result.words
        assert right(result.z, target)
        # With a bound that holds: the first unknown may not come below 0.5.
        lower = torch.tensor([0.5, -5.0, -5.0, -5.0], dtype=dtype)
        held = outcome(ti.minimize, phi, start.maximum(lower), bounds=(lower, 5.0))
        assert held.silent, held.words
        assert right(held.z, target.maximum(lower))


def test_a_right_answer_is_not_destroyed() -> None:
    exact = torch.tensor([1.0, -2.0, 0.5])
    b = A.float() @ exact + 0.1 * exact**3
    z, info = ti.root(lambda z: 1e3 * (A.float() @ z + 0.1 * z**3 - b), exact, on_failure="nan")
    assert info.converged
    assert right(z, exact)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("solver", fast_but(LONG, SQUARES))
def test_residuals_that_vanish_twice_are_a_solution(solver: str, dtype: torch.dtype) -> None:
    """(w − a)² has a Jacobian that vanishes with it: methods halve their distance, and what they end with is right or a failure."""
    a = torch.tensor([5.0, 0.0, -2.0], dtype=dtype)
    result = outcome(ti.least_squares, lambda w: (w - a) ** 2, torch.ones(3, dtype=dtype), solver=solver)
    # A residual of eps is that of any w within √eps of a: nobody can tell them apart.
    near = error(result.z, a) <= 10 * torch.finfo(dtype).eps ** 0.5 * 5
    assert near or not result.found, (result.z, result.info.status)
    if solver == "auto":
        assert result.silent, result.words
        assert near
        assert result.info.steps <= 60


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("solver", ["levenberg_marquardt", "dogleg"])
def test_a_start_near_nothing_is_a_start_at_nothing(solver: str, dtype: torch.dtype) -> None:
    """The radius of the trust region is measured by the start only where the start says anything of the unit of z."""
    b = torch.tensor([3.0, -1.0, 2.0], dtype=dtype)
    M, t, y = A.to(dtype), T.to(dtype), Y.to(dtype)
    problems: dict[str, tuple[Any, Any, int]] = {
        "linear fit": (ti.least_squares, lambda z: M @ z - b, 3),
        "linear root": (ti.root, lambda z: M @ z - b, 3),
        "cubic root": (ti.root, lambda z: M @ z + 0.1 * z**3 - b, 3),
        "curve": (ti.least_squares, lambda z: z[0] + z[1] * t + (z[1] * t).sin() - y, 2),
        "far away": (ti.root, lambda z: M @ z / 1e6 - b, 3),
    }
    for name, (solve, f, n) in problems.items():
        at_zero = outcome(solve, f, torch.zeros(n, dtype=dtype), solver=solver)
        assert at_zero.silent, (name, at_zero.words)
        for start in (1e-9, 1e-15, 1e-30):
            result = outcome(solve, f, torch.full((n,), start, dtype=dtype), solver=solver)
            assert result.silent, (name, start, result.words)
            assert result.info.steps <= at_zero.info.steps + 3, (name, start, result.info.steps, at_zero.info.steps)
            assert error(result.z, at_zero.z) <= 10 * tolerance(at_zero.z), (name, start)


# One number among others


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("solver", ["auto", "picard", "anderson", "broyden", "newton", "newton_krylov"])
def test_each_leaf_of_a_tree_is_judged_by_itself(solver: str, dtype: torch.dtype) -> None:
    x = torch.tensor(0.03, dtype=dtype)
    start = {"p": torch.tensor(9e4, dtype=dtype), "x": torch.tensor(0.0, dtype=dtype)}

    def f(z: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        return {"p": 0.5 * z["p"] + 5e4, "x": 0.9 * z["x"] + x}

    result = outcome(ti.fixed_point, f, start, x, solver=solver)
    good = right(result.z["x"], torch.tensor(0.3, dtype=D)) and right(result.z["p"], torch.tensor(1e5, dtype=D))
    assert good or not result.found, (result.z, result.info.status)
    if solver in ("auto", "newton", "newton_krylov"):
        assert result.silent, result.words
        assert float(result.gradient) == pytest.approx(10, rel=1e-3)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("solver", ["auto", "newton_cg", "bfgs", "lbfgs", "nonlinear_cg"])
def test_each_leaf_of_a_minimum_is_judged_by_itself(solver: str, dtype: torch.dtype) -> None:
    x = torch.tensor(0.3, dtype=dtype)
    start = {"p": torch.tensor(9e4, dtype=dtype), "x": torch.tensor(2.0, dtype=dtype)}

    def phi(z: dict[str, Tensor], x: Tensor) -> Tensor:
        return (z["p"] / 1e5 - 1) ** 2 + (z["x"] - x) ** 2 / 2 + (z["x"] - x) ** 4

    result = outcome(ti.minimize, phi, start, x, solver=solver)
    good = right(result.z["x"], torch.tensor(0.3, dtype=D)) and right(result.z["p"], torch.tensor(1e5, dtype=D))
    assert good or not result.found, (result.z, result.info.status)
    if solver == "auto":
        assert result.silent, result.words


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("solver", ["auto", "picard", "anderson", "broyden", "newton_krylov"])
@pytest.mark.parametrize("slowness", [0.9, 0.99])
def test_one_slow_number_does_not_hide_among_many(solver: str, slowness: float, dtype: torch.dtype) -> None:
    n = 1024
    rates = torch.full((n,), 0.1, dtype=dtype)
    rates[417] = slowness
    x = (1 - rates.double()).to(dtype)
    truth = x.double() / (1 - rates.double())
    result = outcome(ti.fixed_point, lambda z, x: rates * z + x, torch.zeros(n, dtype=dtype), x, solver=solver)
    assert result.found <= right(result.z, truth), (error(result.z, truth), result.info.status)
    root = outcome(ti.root, lambda z, x: z - rates * z - x, torch.zeros(n, dtype=dtype), x, solver=solver)
    assert root.found <= right(root.z, truth), (error(root.z, truth), root.info.status)
    if solver == "auto":
        assert result.silent
        assert root.silent


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("solver", ["auto", "lbfgs", "nonlinear_cg", "newton_cg"])
def test_one_flat_number_of_a_minimum_does_not_hide_among_many(solver: str, dtype: torch.dtype) -> None:
    n = 1024
    weights = torch.ones(n, dtype=dtype)
    weights[417] = 1e-3
    truth = 1 + torch.arange(n, dtype=dtype) / n

    def phi(z: Tensor) -> Tensor:
        return (weights * ((z - truth) ** 2 + 0.1 * (z - truth) ** 4)).sum()

    result = outcome(ti.minimize, phi, torch.zeros(n, dtype=dtype), solver=solver)
    assert result.found <= right(result.z, truth), (error(result.z, truth), result.info.status)
    if solver == "auto":
        assert result.silent, result.words
