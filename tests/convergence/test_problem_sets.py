"""The problem sets at default tolerances: the value and its gradient are right, or it is said; what is singular is said.

The truth is Newton's method by hand in float64 from what was found, for a regression from the certified parameters; where it ends
elsewhere, or nowhere, what was found was no solution, and that has to be said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti

from ..problem_sets import mgh, minpack, nist
from .outcomes import D, Outcome, outcome, tolerance

SYSTEMS = {s.name: s for s in (*minpack.SYSTEMS, *minpack.OTHER_SIZES)}
SQUARES = {p.name: p for p in mgh.PROBLEMS}
REGRESSIONS = {p.name: p for p in nist.PROBLEMS}
EPS = torch.finfo(D).eps
slow = pytest.mark.slow

# The Hessian is singular at every minimiser: Powell's has rank 2 there, those of rank 1 have whole planes of minimisers.
SINGULAR = {"13 Powell singular", "22 extended Powell singular", "33 linear rank 1", "34 linear rank 1 with zeros"}
STANDARD = {s.name for s in minpack.SYSTEMS} - {"generalised Rosenbrock"}  # it takes hundreds of steps
EASY = {"1 Rosenbrock", "5 Beale", "8 Bard", "14 Wood", "15 Kowalik and Osborne", "32 linear full rank"}
FEW = EASY | SINGULAR | {"10 Meyer", "18 Biggs EXP6", "11 Gulf", "MGH10", "Misra1a", "Lanczos3", "Eckerle4", "Thurber"}


def fast_are(fast: set[str], names: Iterable[str]) -> list[Any]:
    """All names, those beside the fast ones marked slow."""
    return [pytest.param(name, marks=[slow] * (name not in fast)) for name in names]


def weighted(z: Tensor) -> Tensor:
    """A loss that no symmetry of z makes constant."""
    return (torch.cos(torch.arange(len(z), dtype=z.dtype)) * z).sum()


@dataclass
class Truth:
    """The solution next to what was found and the gradient of the loss there; None where Newton's method does not converge."""

    z: Tensor | None
    gradient: Tensor


def truth_beside(g: Callable[[Tensor, Tensor], Tensor], z: Tensor, x: Tensor) -> Truth:
    """By Newton's method from z, in float64; the best of its iterates, as rounding may spoil those after it."""
    z, x = z.double(), x.double()
    best, last = None, 1e-7
    for _ in range(100):
        if not (z.isfinite().all() and g(z, x).isfinite().all()):
            break
        correction = scaled_solve(torch.func.jacrev(g)(z, x), g(z, x))
        size = float(correction.abs().max() / z.abs().max().clamp(min=1e-300))
        if size >= last < 1e-12:
            break
        if size < last:
            best, last = z, size
        z = z - correction
    if best is None:
        return Truth(None, torch.full_like(x, torch.nan))
    return Truth(best, gradient_at(g, best, x))


def gradient_at(g: Callable[[Tensor, Tensor], Tensor], z: Tensor, x: Tensor) -> Tensor:
    """Of the loss in x, if z is the solution."""
    J, K = torch.func.jacrev(g, argnums=(0, 1))(z, x)
    w = scaled_solve(J.mT, torch.func.grad(weighted)(z))
    return -(K * w).sum() if x.ndim == 0 else -K.mT @ w


def scaled_solve(J: Tensor, b: Tensor) -> Tensor:
    """J⁻¹ b, with rows and columns of J brought to one size."""
    scaled, rows, columns = scaled_to_one(J)
    return torch.linalg.lstsq(scaled, (b / rows)[:, None], driver="gelsd", rcond=EPS).solution[:, 0] / columns


def singular_at(g: Callable[[Tensor, Tensor], Tensor], z: Tensor, x: Tensor, smallest: float) -> bool:
    """Whether the Jacobian, scaled like that, has a singular value as small as that beside its largest."""
    values = torch.linalg.svdvals(scaled_to_one(torch.func.jacrev(g)(z, x.double()))[0])
    return bool(values[-1] <= smallest * values[0])


def scaled_to_one(J: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """J with the largest entries of its rows, then of its columns, divided out; and these."""
    rows = J.abs().amax(-1).clamp(min=1e-300)
    columns = (J / rows[:, None]).abs().amax(0).clamp(min=1e-300)
    return J / rows[:, None] / columns, rows, columns


def near(found: Tensor | None, truth: Tensor, bound: float) -> bool:
    """Relative to the largest entry; a root at 0 to the default atol."""
    atol = 100 * torch.finfo(found.dtype).eps if found is not None else 0.0
    return found is not None and bool((found.double() - truth).abs().max() <= bound * truth.abs().max() + atol)


def check(result: Outcome, truth: Truth, bound: float, singular: bool) -> None:
    """The value, of what was found; the gradient too, where nothing was said of it, which it always is at a singular solution."""
    if singular:
        assert not result.silent
        return
    if result.found:
        assert truth.z is not None, ("no solution", result.z)
        assert near(result.z, truth.z, bound), (result.z, truth.z, result.info.error)
    if result.silent:
        assert near(result.gradient, truth.gradient, bound), (result.gradient, truth.gradient)


# Float64


@pytest.mark.sampled(7)
@pytest.mark.parametrize("name", fast_are(STANDARD, SYSTEMS))
def test_systems_of_equations(name: str) -> None:
    system = SYSTEMS[name]
    result = outcome(ti.root, system.g, system.start, system.p, weighted)
    truth = truth_beside(system.g, result.z, system.p)
    check(result, truth, 1e-4, system.singular)
    if system.rootless:
        assert not result.info.converged
    elif not system.singular:
        assert result.silent, result.words


def gradient_of_half_the_squares(r: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return torch.func.grad(lambda z, x: r(z, x).square().sum() / 2)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", fast_are(FEW, SQUARES))
def test_sums_of_squares(name: str) -> None:
    problem = SQUARES[name]
    x = torch.zeros(problem.m, dtype=D)  # the observations: what is taken off each residual

    def r(z: Tensor, x: Tensor) -> Tensor:
        return problem.residuals(z) - x

    result = outcome(ti.least_squares, r, problem.start, x, weighted)
    check(result, truth_beside(gradient_of_half_the_squares(r), result.z, x), 1e-4, name in SINGULAR)
    if name in EASY:
        assert result.silent, result.words


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", fast_are(FEW, SQUARES))
def test_the_same_as_objectives(name: str) -> None:
    problem = SQUARES[name]
    x = torch.zeros(problem.m, dtype=D)

    def r(z: Tensor, x: Tensor) -> Tensor:
        return problem.residuals(z) - x

    result = outcome(ti.minimize, lambda z, x: r(z, x).square().sum() / 2, problem.start, x, weighted)
    check(result, truth_beside(gradient_of_half_the_squares(r), result.z, x), 1e-4, name in SINGULAR)
    if name in EASY:
        assert result.silent, result.words


@pytest.mark.parametrize("start", [pytest.param(0, marks=slow), 1], ids=["far", "near"])
@pytest.mark.parametrize("name", fast_are(FEW, REGRESSIONS))
def test_regressions(name: str, start: int) -> None:
    problem = REGRESSIONS[name]
    result = outcome(ti.least_squares, problem.residuals, problem.starts[start], problem.y, weighted)
    truth = truth_beside(gradient_of_half_the_squares(problem.residuals), problem.parameters, problem.y)
    check(result, truth, 1e-4, singular=False)
    assert result.info.converged


# Float32


@contextmanager
def single(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The functions of the sets with all their data in float32, so that they compute in it."""

    def in_single(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args: make(*args).float()

    with monkeypatch.context() as patch:
        for module in (minpack, mgh):
            for name, value in vars(module).items():
                if isinstance(value, Tensor) and value.dtype == D:
                    patch.setattr(module, name, value.float())
            for name in ("real", "scalar", "ones", "up_to"):
                if hasattr(module, name):
                    patch.setattr(module, name, in_single(getattr(module, name)))
        yield


def blurred(noisy: Callable[[Tensor], Tensor], exact: Callable[[Tensor], Tensor], z: Tensor) -> float:
    """How far the rounding of g in float32 moves its root, relative to its largest entry: J⁻¹ times what g differs by beside z."""
    J = torch.func.jacrev(exact)(z)
    draw = torch.Generator().manual_seed(0)
    moved = []
    for _ in range(8):
        beside = (z * (1 + 1e-6 * torch.randn(z.shape, dtype=D, generator=draw))).float()
        moved.append(scaled_solve(J, noisy(beside).double() - exact(beside.double())).abs().max())
    return float(max(moved) / z.abs().max().clamp(min=1e-30))


def check_single(
    result: Outcome, noisy: Callable[[Tensor, Tensor], Tensor], exact: Callable[[Tensor, Tensor], Tensor], x: Tensor
) -> None:
    """z within 1e-2, or within what rounding hides of it; the gradient within 1e-2 and what a change of z by its tolerance makes
    of it. That may be much: what nothing is said of has one digit at least."""
    if not result.found:
        return
    truth = truth_beside(exact, result.z, x)
    if not result.silent and (truth.z is None or singular_at(exact, truth.z, x, 10 * torch.finfo(x.dtype).eps)):
        return  # in float32 the search cannot tell it from a flat valley; that the derivative is none is said
    assert truth.z is not None, ("no solution", result.z)
    blur = blurred(lambda z: noisy(z, x), lambda z: exact(z, x.double()), truth.z)
    assert near(result.z, truth.z, 1e-2 + 10 * blur), (result.z, truth.z, result.info.error, blur)
    if not result.silent:
        return
    allowed = tolerance(truth.z.float()) + 10 * blur * truth.z.abs().max()
    moves = allowed * torch.cat([torch.eye(len(truth.z), dtype=D), -torch.eye(len(truth.z), dtype=D)])
    gradients = torch.stack([gradient_at(exact, truth.z + move, x.double()) for move in moves])
    changed = float((gradients - truth.gradient).abs().nan_to_num(nan=torch.inf).max() / truth.gradient.abs().max())
    assert near(result.gradient, truth.gradient, 1e-2 + min(changed, 0.1)), (result.gradient, truth.gradient, changed)


@pytest.mark.sampled(7)
@pytest.mark.parametrize("name", fast_are(STANDARD, SYSTEMS))
def test_systems_of_equations_in_single_precision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    system = SYSTEMS[name]
    p = system.p.float()

    def noisy(z: Tensor, p: Tensor) -> Tensor:
        with single(monkeypatch):
            return system.g(z, p)

    result = outcome(ti.root, noisy, system.start.float(), p, weighted)
    if system.singular:
        assert not result.silent
    else:
        check_single(result, noisy, system.g, p)
    if system.rootless:
        assert not result.info.converged


@pytest.mark.sampled(3)
@pytest.mark.parametrize("solve", [ti.least_squares, pytest.param(ti.minimize, marks=slow)])
@pytest.mark.parametrize("name", fast_are(FEW, SQUARES))
def test_sums_of_squares_in_single_precision(name: str, solve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = SQUARES[name]
    x = torch.zeros(problem.m)

    def exact(z: Tensor, x: Tensor) -> Tensor:
        return problem.residuals(z) - x

    def noisy(z: Tensor, x: Tensor) -> Tensor:
        with single(monkeypatch):
            return problem.residuals(z) - x

    f = noisy if solve is ti.least_squares else lambda z, x: noisy(z, x).square().sum() / 2
    result = outcome(solve, f, problem.start.float(), x, weighted)
    if name in SINGULAR:
        assert not result.silent
    else:
        check_single(result, gradient_of_half_the_squares(noisy), gradient_of_half_the_squares(exact), x)


@pytest.mark.parametrize("start", [pytest.param(0, marks=slow), 1], ids=["far", "near"])
@pytest.mark.parametrize("name", fast_are(FEW, REGRESSIONS))
def test_regressions_in_single_precision(name: str, start: int) -> None:
    problem = REGRESSIONS[name]
    rounded = replace(problem, x=problem.x.float(), y=problem.y.float())
    exact = replace(problem, x=rounded.x.double(), y=rounded.y.double())
    result = outcome(ti.least_squares, rounded.residuals, problem.starts[start].float(), rounded.y, weighted)
    check_single(
        result,
        gradient_of_half_the_squares(rounded.residuals),
        gradient_of_half_the_squares(exact.residuals),
        rounded.y,
    )
