"""The collections of test problems are what they claim to be: published roots, minima, norms and certified values, and SciPy, agree."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares, root
from torch import Tensor

from . import mgh, minpack, nist
from .mgh import LeastSquares
from .minpack import System, ones, parabola, real, scalar
from .nist import Regression

Array = NDArray[np.float64]

ALL_SYSTEMS = minpack.SYSTEMS + minpack.OTHER_SIZES
SYSTEM = {system.name: system for system in ALL_SYSTEMS}
PROBLEM = {problem.name: problem for problem in mgh.PROBLEMS}


def named(problem: System | LeastSquares | Regression) -> str:
    return problem.name


def array(function: Callable[[Tensor], Tensor]) -> Callable[[Array], Array]:
    return lambda z: function(torch.from_numpy(z)).numpy()


def jacobian(function: Callable[[Tensor], Tensor]) -> Callable[[Array], Array]:
    return array(torch.func.jacfwd(function))


def scipy_root(system: System, start: Tensor, method: str = "lm") -> Tensor:
    def g(z: Tensor) -> Tensor:
        return system.g(z, system.p)

    return torch.from_numpy(root(array(g), start.numpy(), jac=jacobian(g), method=method, tol=1e-14).x)


def scipy_minimum(residuals: Callable[[Tensor], Tensor], start: Tensor) -> tuple[Tensor, float]:
    """MINPACK's lmder: the minimiser and the sum of squares."""
    tight = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
    scale = 1 / np.maximum(np.linalg.norm(jacobian(residuals)(start.numpy()), axis=0), 1e-300)
    found = least_squares(
        array(residuals), start.numpy(), jac=jacobian(residuals), method="lm", x_scale=scale, max_nfev=3000, **tight
    )
    return torch.from_numpy(found.x), 2 * found.cost


def one_by_one_is_batched(function: Callable[[Tensor], Tensor], start: Tensor) -> None:
    rng = torch.Generator().manual_seed(0)
    z = start * (1 + 0.1 * torch.rand(2, 3, start.shape[-1], generator=rng, dtype=torch.float64))
    rows = torch.stack([function(row) for row in z.flatten(0, 1)]).unflatten(0, (2, 3))
    torch.testing.assert_close(function(z), rows, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.func.vmap(torch.func.vmap(function))(z), rows, rtol=1e-12, atol=1e-12)


# Systems of equations


def test_there_are_23_systems_and_every_name_is_used_once() -> None:
    assert len(minpack.SYSTEMS) == 23
    assert len(SYSTEM) == len(ALL_SYSTEMS)


@pytest.mark.parametrize("system", ALL_SYSTEMS, ids=named)
def test_published_roots_are_roots(system: System) -> None:
    tolerance = 1e-6 if system.g is minpack.watson else 1e-10  # as many digits as are published
    for z in system.roots:
        torch.testing.assert_close(scipy_root(system, z), z, rtol=0, atol=tolerance)
        assert system.g(z, system.p).abs().max() < 50 * tolerance
    for z in system.singular_roots:
        assert system.g(z, system.p).abs().max() == 0


@pytest.mark.sampled(4)
@pytest.mark.parametrize("system", ALL_SYSTEMS, ids=named)
def test_the_jacobian_is_singular_where_it_is_said_to_be(system: System) -> None:
    for z in system.roots + system.singular_roots:
        singular_values = torch.linalg.svdvals(torch.func.jacfwd(system.g)(z, system.p))
        regular = singular_values[-1] > 1e-12 * singular_values[0]
        assert regular == any(z is known for known in system.roots)
    names = [s.name for s in minpack.SYSTEMS if s.singular]
    assert names == ["Powell singular", "sample 18", "sample 19"]


# The two that SciPy does not solve from their starts end in a local minimum of |g|; the two square roots of a matrix end in the
# neighbourhood of the root, since in float64 the Jacobian (condition 10¹¹) is singular long before.
@pytest.mark.sampled(4)
@pytest.mark.parametrize("system", minpack.SYSTEMS, ids=named)
def test_scipy_finds_a_root_from_the_start(system: System) -> None:
    method = "hybr" if system.g is minpack.hammarling else "lm"  # the other one takes a thousand steps
    found = system.g(scipy_root(system, system.start, method), system.p).abs().max()
    if system.g in (minpack.trigonometric, minpack.freudenstein_roth):
        assert found > 1e-3
    elif system.g is minpack.hammarling:
        assert 1e-6 < found < 1e-4
    else:
        assert found < 1e-12


# The norms that test_nonlin prints for n = 5 (or the only n); its Chebyquad and Chandrasekhar equations are different ones.
NORMS: list[tuple[str, Tensor, float]] = [
    ("generalised Rosenbrock", real(-1.2, 1, 1, 1, 1), 4.919349550499537),
    ("Powell singular", real(3, -1, 0, 1), 14.662878298615182),
    ("Powell badly scaled", real(0, 1), 1.0654866105908503),
    ("Wood", real(-3, -1, -3, -1), 8550.557408730732),
    ("helical valley", real(-1, 0, 0), 50.0),
    ("Watson 6", 0 * ones(5), 60.781914592238834),
    ("Brown almost linear 10", ones(5) / 2, 6.077703230867726),
    ("discrete boundary value", parabola(5), 0.06411752655826478),
    ("discrete integral equation", parabola(5), 0.18944291798650298),
    ("trigonometric", ones(5) / 5, 0.10796934282689574),
    ("variably dimensioned", real(0.8, 0.6, 0.4, 0.2, 0), 19824.981795704127),
    ("Broyden tridiagonal", -ones(5), 4.0),
    ("Broyden banded", -ones(5), 13.416407864998739),
    ("Hammarling 2 by 2", real(1, 0, 0, 1), 1.7319353394396686),
    ("Hammarling 3 by 3", real(1, 0, 0, 0, 1, 0, 0, 0, 1), 1.9998500018751406),
    ("Dennis and Schnabel", real(1, 5), 17.26267650163207),
    ("sample 18", real(2, 2), 2.195112963893241),
    ("sample 19", real(3, 3), 76.36753236814714),
    ("scalar z(z - 5)²", real(1), 16.0),
    ("Freudenstein and Roth", real(0.5, -2), 20.0124960961895),
    ("Boggs", real(1, 0), 2.0),
]


@pytest.mark.parametrize(("name", "start", "norm"), NORMS, ids=[name for name, _, _ in NORMS])
def test_published_norms_at_the_start(name: str, start: Tensor, norm: float) -> None:
    system = SYSTEM[name]
    assert torch.linalg.norm(system.g(start, system.p)) == pytest.approx(norm, rel=1e-14)
    if start.shape == system.start.shape:
        assert torch.equal(start, system.start)


def test_watson_is_half_the_gradient_of_its_sum_of_squares() -> None:
    z = torch.linspace(-1, 2, 6, dtype=torch.float64)
    half = torch.func.grad(lambda z: (minpack.watson_residuals(z, scalar(1)) ** 2).sum() / 2)
    torch.testing.assert_close(minpack.watson(z, scalar(1)), half(z))


def test_wood_is_the_gradient_of_its_sum_of_squares_but_for_factors() -> None:
    z = real(-0.3, 1.2, 0.7, -2)
    gradient = torch.func.grad(lambda z: (mgh.wood(z) ** 2).sum())(z)
    torch.testing.assert_close(minpack.wood(z, scalar(1)) * real(2, 1, 2, 1), gradient)


def test_chebyquad_is_the_quadrature_error_of_chebyshev_polynomials() -> None:
    z = real(0.1, 0.25, 0.6, 0.95)
    t = torch.linspace(0, math.pi, 100_001, dtype=torch.float64)
    for i, g in enumerate(minpack.chebyquad(z, scalar(1)), start=1):
        integral = torch.trapezoid(torch.cos(i * t) * torch.sin(t) / 2, t)
        assert g == pytest.approx(float(torch.cos(i * torch.arccos(2 * z - 1)).mean() - integral), abs=1e-8)


def test_chebyquad_has_no_root_at_eight() -> None:
    system = SYSTEM["Chebyquad 8"]
    assert system.rootless
    assert (system.g(scipy_root(system, system.start), system.p) ** 2).sum() == pytest.approx(3.51687e-3, rel=2e-6)


def test_the_boundary_value_problem_and_its_integral_equation_have_one_root() -> None:
    boundary, integral = SYSTEM["discrete boundary value"], SYSTEM["discrete integral equation"]
    torch.testing.assert_close(scipy_root(boundary, boundary.start), scipy_root(integral, integral.start))


def test_the_root_of_broyden_tridiagonal_in_the_manual_of_minpack() -> None:
    published = real(
        -0.5706545, -0.6816283, -0.7017325, -0.7042129, -0.7013690, -0.6918656, -0.6657920, -0.5960342, -0.4164121
    )
    found = scipy_root(SYSTEM["Broyden tridiagonal"], -ones(9))
    torch.testing.assert_close(found, published, rtol=0, atol=6e-8)


def test_broyden_banded_is_its_sum() -> None:
    z = torch.linspace(-1, 2, 10, dtype=torch.float64)
    for k, g in enumerate(minpack.broyden_banded(z, scalar(1))):
        around = [j for j in range(max(0, k - 5), min(10, k + 2)) if j != k]
        assert g == pytest.approx(float(z[k] * (2 + 5 * z[k] ** 2) + 1 - sum(z[j] * (1 + z[j]) for j in around)))


def test_the_mean_of_the_discrete_h_function_is_the_closed_form() -> None:
    """Summing the equations and exchanging i and j gives c/4 a² - a + 1 = 0 for the mean a of H, at every n."""
    system = SYSTEM["Chandrasekhar H"]
    mean = scipy_root(system, system.start).mean()
    assert mean == pytest.approx(2 / 0.9 * (1 - math.sqrt(1 - 0.9)), rel=1e-13)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("system", ALL_SYSTEMS, ids=named)
def test_a_batch_of_systems_is_one_by_one(system: System) -> None:
    one_by_one_is_batched(lambda z: system.g(z, system.p), system.start)
    p = system.p + torch.tensor([0.0, 0.1], dtype=torch.float64)
    z = torch.stack([system.start, system.start + 0.1])
    one_by_one = torch.stack([system.g(z[0], p[0]), system.g(z[1], p[1])])
    torch.testing.assert_close(system.g(z, p), one_by_one, rtol=1e-12, atol=1e-12)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("system", ALL_SYSTEMS, ids=named)
def test_the_derivatives_are_central_differences(system: System) -> None:
    """In z and in p, a little off the start, where nothing vanishes by symmetry."""
    z = system.start + 0.01 * torch.arange(1, system.n + 1, dtype=torch.float64)
    in_z, in_p = torch.func.jacrev(system.g, argnums=(0, 1))(z, system.p)
    step = 1e-5
    scale = 1 + system.g(z, system.p).abs().max()
    for j, unit in enumerate(torch.eye(system.n, dtype=torch.float64)):
        difference = (system.g(z + step * unit, system.p) - system.g(z - step * unit, system.p)) / (2 * step)
        torch.testing.assert_close(in_z[:, j], difference, rtol=1e-6, atol=float(1e-9 * scale))
    difference = (system.g(z, system.p + step) - system.g(z, system.p - step)) / (2 * step)
    torch.testing.assert_close(in_p, difference, rtol=1e-6, atol=float(1e-9 * scale))
    assert in_p.abs().max() > 0


@pytest.mark.sampled(4)
@pytest.mark.parametrize("system", [s for s in ALL_SYSTEMS if s.roots], ids=named)
def test_the_regular_roots_move_with_the_parameter(system: System) -> None:
    for z in system.roots:
        moved = torch.linalg.solve(*torch.func.jacfwd(system.g, argnums=(0, 1))(z, system.p))
        assert moved.abs().max() > 1e-3


def test_sample_18_is_smooth_on_its_axes() -> None:
    z = real(0, 1e-9)
    expected = real(1e-18, 0, 1e-9, 0)
    at_zero = torch.func.jacfwd(minpack.sample_18)(z, scalar(0)).flatten()
    torch.testing.assert_close(at_zero, expected, rtol=1e-12, atol=0)


# Least squares


def test_all_35_least_squares_problems_are_there() -> None:
    assert {int(name.split()[0]) for name in PROBLEM} == set(range(1, 36))
    assert len(PROBLEM) == len(mgh.PROBLEMS)


@pytest.mark.sampled(9)
@pytest.mark.parametrize("problem", mgh.PROBLEMS, ids=named)
def test_published_minima(problem: LeastSquares) -> None:
    assert problem.residuals(problem.start).shape == (problem.m,)
    for z in problem.minimisers:
        assert (problem.residuals(z) ** 2).sum() == pytest.approx(problem.minima[0], abs=1e-25)
    # From Biggs's start the rounding decides whether MINPACK gets to the minimum or away to infinity, at 0.3371.
    start = real(1.1, 9, 1.2, 4.5, 3.8, 3.1) if problem.name == "18 Biggs EXP6" else problem.start
    _, found = scipy_minimum(problem.residuals, start)
    assert any(found == pytest.approx(value, rel=4e-6, abs=1e-20) for value in problem.minima)


@pytest.mark.parametrize(
    ("name", "start", "value"),
    [
        ("2 Freudenstein and Roth", real(4, 5), 0.0),
        ("18 Biggs EXP6", real(1.71141599, 17.6831980, 2.32628732, 3.89013533, 17.6831980, -1.29642634), 5.65565e-3),
        ("26 trigonometric", 0.01 * ones(10), 0.0),
        ("27 Brown almost linear", real(*[0.0] * 9, 11), 1.0),
        ("35 Chebyquad 10", real(0.03, 0.15, 0.2, 0.38, 0.39, 0.53, 0.64, 0.71, 0.83, 0.92), 4.77271e-3),
    ],
)
def test_published_minima_that_the_standard_start_does_not_lead_to(name: str, start: Tensor, value: float) -> None:
    problem = PROBLEM[name]
    assert value in problem.minima
    assert scipy_minimum(problem.residuals, start)[1] == pytest.approx(value, rel=4e-6, abs=1e-20)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("problem", mgh.PROBLEMS, ids=named)
def test_a_batch_of_residuals_is_one_by_one(problem: LeastSquares) -> None:
    one_by_one_is_batched(problem.residuals, problem.start)


# Regression


def test_the_27_datasets_and_their_difficulties() -> None:
    assert Counter(p.difficulty for p in nist.PROBLEMS) == {"lower": 8, "average": 11, "higher": 8}
    assert len({p.name for p in nist.PROBLEMS}) == 27


@pytest.mark.parametrize("problem", nist.PROBLEMS, ids=named)
def test_certified_sums_of_squares_and_deviations(problem: Regression) -> None:
    """The deviations are those of the linearised model, √(s² diag (JᵀJ)⁻¹), so that they check its derivatives too."""
    b, (m,) = problem.parameters, problem.y.shape
    if problem.name != "Lanczos1":  # its sum, 1.4e-25, is below what parameters of 11 digits can give
        found = (problem.residuals(b, problem.y) ** 2).sum()
        assert found == pytest.approx(problem.sum_of_squares, rel=1e-9)
    j = torch.func.jacfwd(problem.model)(b, problem.x)
    norms = torch.linalg.norm(j, dim=0)
    inverse = torch.linalg.inv(torch.linalg.qr(j / norms)[1])
    variance = problem.sum_of_squares / (m - len(b))
    deviations = math.sqrt(variance) * torch.linalg.norm(inverse, dim=1) / norms
    torch.testing.assert_close(deviations, problem.deviations, rtol=2e-9, atol=0)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("problem", nist.PROBLEMS, ids=named)
def test_scipy_fits_the_certified_parameters_from_the_second_start(problem: Regression) -> None:
    found, sum_of_squares = scipy_minimum(lambda b: problem.residuals(b, problem.y), problem.starts[1])
    torch.testing.assert_close(found, problem.parameters, rtol=1e-6, atol=0)
    assert sum_of_squares == pytest.approx(problem.sum_of_squares, rel=1e-8 if problem.name != "Lanczos1" else 1e-2)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("problem", nist.PROBLEMS, ids=named)
def test_a_batch_of_fits_is_one_by_one(problem: Regression) -> None:
    one_by_one_is_batched(lambda b: problem.residuals(b, problem.y), problem.parameters)
