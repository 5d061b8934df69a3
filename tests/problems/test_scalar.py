"""Equations in one unknown, each entry of a tensor its own: SciPy's roots, poles and jumps that are none, brackets that are sought."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

import torchimplicit as ti
from torchimplicit.solvers import ITP, Bisection, Chandrupatla

D = torch.float64
EPS = torch.finfo(D).eps
METHODS = [Bisection, Chandrupatla, ITP]
Method = type[Bisection] | type[Chandrupatla] | type[ITP]

# Name: (g, lower, upper), on each of which g changes its sign once. Alefeld, Potra and Shi (1995), table I, and others.
EQUATIONS: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "sine": (lambda z: torch.sin(z) - z / 2, math.pi / 2, math.pi),
    "exponential": (lambda z: z * torch.exp(-z) - 0.1, 1.0, 20.0),
    "power": (lambda z: z**9 - 0.2, 0.0, 5.0),
    "steep": (lambda z: -2 * z * torch.exp(torch.tensor(-20.0, dtype=D)) + 1 - torch.exp(-20 * z) * 2, 0.0, 1.0),
    "flat": (lambda z: (z - 1) ** 7, 0.0, 5.0),
    "logarithm": (lambda z: torch.log(z) + 1, 1e-300, 100.0),
    "arctangent": (lambda z: torch.atan(1e3 * (z - 0.123)), -1e6, 2e6),
    "large": (lambda z: z / 1e200 - 3, -1e200, 1e201),
    "small": (lambda z: z * 1e200 - 3, -1e-199, 1e-199),
}


def all_of_them(functions: list[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    return lambda z: torch.stack([g(z[i]) for i, g in enumerate(functions)])


@pytest.mark.parametrize("method", METHODS)
def test_every_entry_of_one_batch_is_where_brentq_finds_it(method: Method) -> None:
    functions, lower, upper = (list(column) for column in zip(*EQUATIONS.values(), strict=True))
    g = all_of_them(functions)
    lower, upper = torch.tensor(lower, dtype=D), torch.tensor(upper, dtype=D)
    # To a tolerance of nothing, an entry ends where no float is left between the ends.
    z, info = ti.root(
        g, lower, solver=method(lower, upper), batch_ndim=1, rtol=0.0, atol=0.0, max_steps=2000, on_failure="ignore"
    )
    assert set(info.status.tolist()) <= {ti.Status.CONVERGED, ti.Status.STAGNATED}
    for i, (name, (f, a, b)) in enumerate(EQUATIONS.items()):
        expected = brentq(
            lambda x, f=f: float(f(torch.tensor(x, dtype=D))), a, b, xtol=1e-300, rtol=4 * EPS, maxiter=500
        )
        # (z − 1)⁷ underflows to nothing near its root, and any z there is one.
        assert abs(float(z[i]) - expected) <= (1e-40 ** (1 / 7) if name == "flat" else 1e-14 * abs(expected)), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_a_bracket_is_sought_on_both_sides_and_short_of_what_is_not_defined(method: Method, dtype: torch.dtype) -> None:
    functions: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
        "right": (lambda z: z - 100, 0.0, 100.0),
        "left": (lambda z: z + 100, 0.0, -100.0),
        "far": (lambda z: z - 1e12, 0.0, 1e12),
        "overflow": (lambda z: torch.exp(z) - 1e3, -20.0, math.log(1e3)),
        "edge of the domain": (lambda z: torch.log(z) + 5, 1.0, math.exp(-5)),
        "within the domain": (lambda z: torch.sqrt(1 - z) - 0.1, 0.0, 0.99),
        "falling": (lambda z: z * torch.exp(-z), 2.0, 0.0),  # downhill is away from the root
    }
    start = torch.tensor([z0 for _, z0, _ in functions.values()], dtype=dtype)
    g = all_of_them([f for f, _, _ in functions.values()])
    z, info = ti.root(g, start, solver=method(), batch_ndim=1)
    assert info.converged.all()
    expected = torch.tensor([root for _, _, root in functions.values()], dtype=dtype)
    eps = torch.finfo(dtype).eps
    assert ((z - expected).abs() <= 1.01 * (eps + eps**0.5 * expected.abs())).all()


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_root_is_not_called_one(method: Method) -> None:
    functions: dict[str, tuple[Callable[[Tensor], Tensor], ti.Status]] = {
        "pole": (lambda z: 1 / (z - 0.3), ti.Status.STAGNATED),
        "root beside a pole": (lambda z: (z - 0.9) / (z - 0.3), ti.Status.CONVERGED),
        "jump": (lambda z: torch.where(z > 0.3, 1.0, -1.0), ti.Status.STAGNATED),
        "no root": (lambda z: z**2 + 1, ti.Status.NO_BRACKET),
        "double root": (lambda z: (z - 0.3) ** 2, ti.Status.NO_BRACKET),
        "nan": (lambda z: z * torch.nan, ti.Status.NONFINITE),
        "nan within": (lambda z: torch.where((z - 0.3).abs() < 0.1, torch.nan, z - 0.3), ti.Status.NONFINITE),
        "root": (lambda z: z - 0.3, ti.Status.CONVERGED),
    }
    start = torch.ones(len(functions), dtype=D)
    z, info = ti.root(
        all_of_them([f for f, _ in functions.values()]), start, solver=method(), batch_ndim=1, on_failure="ignore"
    )
    assert [ti.Status(s) for s in info.status.tolist()] == [status for _, status in functions.values()]
    assert float(z[-1]) == pytest.approx(0.3, abs=1e-8)
    with pytest.warns(ti.ConvergenceWarning, match="no_bracket.*opposite signs"):
        ti.root(lambda z: z - 2, torch.tensor(0.0), solver=method(0, 1))


POLES: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "beyond a pole": (lambda z: (z - 3) / (z - 1), 3.0),
    "beyond two poles": (lambda z: (z - 20) / ((z - 1) * (z - 6)), 20.0),
    "on the other side": (lambda z: (z + 5) / (1 - z), -5.0),
    "no pole": (lambda z: z**3 - 8, 2.0),
    "of even order": (lambda z: (z - 3) / (z - 1) ** 2, 3.0),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("method", METHODS)
def test_a_root_beyond_poles_is_found(method: Method, dtype: torch.dtype) -> None:
    """In a batch and one by one, the same: a system that goes on searching changes no other one."""
    start, rtol = torch.zeros(len(POLES), dtype=dtype), 20 * torch.finfo(dtype).eps
    z, info = ti.root(all_of_them([f for f, _ in POLES.values()]), start, solver=method(), batch_ndim=1, rtol=rtol)
    roots = torch.tensor([root for _, root in POLES.values()], dtype=dtype)
    torch.testing.assert_close(z, roots, rtol=100 * rtol, atol=0)
    for i, (f, _) in enumerate(POLES.values()):
        alone, single = ti.root(f, start[i], solver=method(), rtol=rtol)
        assert (alone, single.steps) == (z[i], info.steps[i])


@pytest.mark.parametrize("method", METHODS)
def test_the_search_beyond_a_pole_has_an_end(method: Method) -> None:
    """It does not run on to where 1/z is small, nor out of the ends that were given."""
    z, info = ti.root(lambda z: 1 / (z - 1), torch.tensor(0.0, dtype=D), solver=method(), on_failure="ignore")
    assert info.status == ti.Status.STAGNATED
    assert "a pole" in info.message
    assert info.steps < 100
    for ends, status in (((-1, 2), ti.Status.STAGNATED), ((None, 2), ti.Status.STAGNATED), ((-1, None), 0)):
        z, info = ti.root(
            lambda z: (z - 3) / (z - 1), torch.tensor(0.0, dtype=D), solver=method(*ends), on_failure="ignore"
        )
        assert info.status == status
        assert -700 < z < (2 if ends[1] else 4)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("method", METHODS)
def test_a_jump_or_a_pole_at_zero_is_none(method: Method, dtype: torch.dtype) -> None:
    """Where floats become ever finer, a bracket never closes; with a root beyond, the search goes on."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "sign": torch.sign,
        "pole": lambda z: 1 / z,
        "third": lambda z: z**-3,
    }
    for g in functions.values():
        for ends in ((), (-1.0, 1.5)):
            start = torch.tensor(-1.0, dtype=dtype)
            info = ti.root(lambda z, g=g: g(z) + (z == 0), start, solver=method(*ends), on_failure="ignore").info
            assert info.status == ti.Status.STAGNATED
    z, info = ti.root(lambda z: (z - 3) / z, torch.tensor(-1.0, dtype=dtype), solver=method())
    assert info.converged
    assert float(z) == pytest.approx(3, rel=torch.finfo(dtype).eps ** 0.5)


ERRORS: dict[str, Callable[[Tensor], Tensor]] = {
    "line": lambda y: y,
    "cubic": lambda y: y + y**3,
    "exponential": torch.expm1,
    "bounded": torch.atan,
    "flat": lambda y: y**5,
    "kink": lambda y: torch.where(y > 0, 50 * y, y),
    "cube root": lambda y: y.sign() * y.abs() ** (1 / 3),
    "steep at one end": lambda y: torch.sinh(5 * y),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rtol", [None, 1e-3, 1e-12])
def test_the_error_that_is_told_is_never_too_small(method: Method, rtol: float | None) -> None:
    draw = torch.Generator().manual_seed(1)
    roots = torch.tensor([0.3, -2e-3, 5e5, math.pi], dtype=D).repeat_interleave(25)
    wide = roots.abs() * 10 ** (5 * torch.rand(100, dtype=D, generator=draw) - 2)
    lower, upper = (roots + side * wide * torch.rand(100, dtype=D, generator=draw) for side in (-1, 5))
    for name, g in ERRORS.items():
        for ends in ((lower, upper), (lower, None), ()):
            scaled = lambda z, x, g=g: g((z - x) / wide)  # noqa: E731
            z, info = ti.root(scaled, lower, (roots,), solver=method(*ends), batch_ndim=1, rtol=rtol)
            assert info.converged.all(), name
            # y⁵ underflows next to its root.
            assert ((z - roots).abs() <= info.error + 4 * EPS * roots.abs() + (g((z - roots) / wide) == 0) * wide).all()


@pytest.mark.sampled(5)
@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("method", METHODS)
def test_between_two_ends_the_start_plays_no_part(method: Method, dtype: torch.dtype) -> None:
    """Nor does it matter that e⁹⁰ and e²⁰⁰ are infinite in single precision, e⁸⁰⁰ in both: they have a sign."""
    for upper in (200.0, 800.0, 2000.0):
        solutions = [
            ti.root(lambda z: z.exp() - 2, torch.tensor(start, dtype=dtype), solver=method(0.0, upper))
            for start in (-7.0, 0.0, math.log(2), 90.0, upper)
        ]
        assert all(s.info.converged for s in solutions)
        assert len({(float(s.value), int(s.info.steps), int(s.info.evaluations)) for s in solutions}) == 1
        assert float(solutions[0].value) == pytest.approx(math.log(2), rel=2 * torch.finfo(dtype).eps ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("method", METHODS)
def test_a_solution_as_the_start_of_a_search_is_found_in_one_step(method: Method, dtype: torch.dtype) -> None:
    for root in (1.0, -3e-4, 7e9):
        g = lambda z, root=root: (z / root) ** 3 + z / root - 2  # noqa: E731
        first = ti.root(g, torch.tensor(0.4 * root, dtype=dtype), solver=method())
        again = ti.root(g, first.value, solver=method())
        assert first.info.converged
        assert again.info.converged
        assert again.info.steps <= 1
        assert again.info.evaluations <= 3


@pytest.mark.parametrize("method", METHODS)
def test_an_end_that_is_the_root_or_infinite_or_not_defined(method: Method) -> None:
    def g(z: Tensor) -> Tensor:
        return torch.stack([z[0] - 1, z[1] - 2, torch.log(z[2]), torch.log(z[3]), 1 / z[4] - 2, z[5] - 9, z[6] + 9])

    inf = math.inf
    lower = torch.tensor([1.0, 0.0, 0.0, -1.0, 0.0, 0.0, -inf], dtype=D)
    upper = torch.tensor([2.0, 2.0, 5.0, 5.0, 7.0, inf, 0.0], dtype=D)
    z, info = ti.root(g, lower, solver=method(lower, upper), batch_ndim=1, rtol=1e-14, on_failure="ignore")
    assert info.converged.all()
    torch.testing.assert_close(z, torch.tensor([1.0, 2.0, 1.0, 1.0, 0.5, 9.0, -9.0], dtype=D), rtol=1e-12, atol=0.0)


def kepler(E: Tensor, M: Tensor, e: Tensor) -> Tensor:
    return E - e * torch.sin(E) - M


def orbits(count: int, largest: float) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    M = 2 * math.pi * torch.rand(count, dtype=D, generator=draw)
    return M, largest * torch.rand(count, dtype=D, generator=draw)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("given", [True, False])
def test_a_batch_is_solved_as_its_entries_one_by_one(method: Method, given: bool) -> None:
    M, e = orbits(12, 0.999)
    lower, upper = (M - e, M + e) if given else (M - torch.inf, M + torch.inf)
    together, info = ti.root(kepler, M, (M, e), solver=method(lower, upper), batch_ndim=1, rtol=0.0, atol=1e-12)
    in_parts, parts = ti.root(
        kepler, M, (M, e), solver=method(lower, upper), batch_ndim=1, rtol=0.0, atol=1e-12, batched=(True, True)
    )
    alone = [
        ti.root(kepler, M[i], (M[i], e[i]), solver=method(lower[i], upper[i]), rtol=0.0, atol=1e-12) for i in range(12)
    ]
    assert torch.equal(together, torch.stack([solution.value for solution in alone]))
    assert torch.equal(together, in_parts)
    assert info.steps.tolist() == parts.steps.tolist() == [int(solution.info.steps) for solution in alone]
    assert len(set(info.steps.tolist())) > 1  # they do not all take the same number of steps


@pytest.mark.parametrize("method", METHODS)
def test_keplers_equation_and_the_closed_form_of_its_derivatives(method: Method) -> None:
    M, e = orbits(2000, 0.999)
    M.requires_grad_()
    e.requires_grad_()
    E, info = ti.root(
        kepler, M, (M, e), solver=method(M - e, M + e), batch_ndim=1, rtol=0.0, atol=1e-15, batched=(True, True)
    )
    assert info.converged.all()
    assert (kepler(E, M, e).abs() <= 1e-14).all()
    dM, de = torch.autograd.grad(E.sum(), (M, e))
    slope = 1 - e * torch.cos(E)
    torch.testing.assert_close(dM, 1 / slope, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(de, torch.sin(E) / slope, rtol=1e-12, atol=1e-15)


def test_evaluations_are_few_where_the_method_promises_it() -> None:
    M, e = orbits(1000, 0.95)
    steps = {
        method: ti.root(kepler, M, (M, e), solver=method(M - e, M + e), batch_ndim=1, rtol=0.0, atol=1e-12).info.steps
        for method in METHODS
    }
    assert steps[Chandrupatla].max() <= 12
    assert (steps[ITP] <= steps[Bisection] + 1).all()
    assert steps[ITP].double().mean() < steps[Bisection].double().mean() / 3


def test_itp_is_never_much_slower_than_bisection() -> None:
    # So flat that a secant always proposes a point next to an end.
    stubborn = {"flat": lambda z: z**201 - 1e-60, "step": lambda z: torch.tanh(1e8 * (z - 0.7)) + 0.5 * z**99}
    for g in stubborn.values():
        steps = [
            int(ti.root(g, torch.tensor(0.1, dtype=D), solver=m(-1, 2), rtol=0.0, atol=1e-13).info.steps)
            for m in (ITP, Bisection)
        ]
        assert steps[0] <= steps[1] + 54


@pytest.mark.slow
def test_a_million_orbits_of_high_eccentricity() -> None:
    M, _ = orbits(1_000_000, 1.0)
    e = torch.full_like(M, 0.999)
    E, info = ti.root(
        kepler, M, (M, e), solver=Chandrupatla(M - e, M + e), batch_ndim=1, rtol=0.0, atol=1e-12, batched=(True, True)
    )
    assert info.converged.all()
    x = E.numpy()
    for _ in range(2):  # Newton's method to rounding, from the other side
        x = x - (x - 0.999 * np.sin(x) - M.numpy()) / (1 - 0.999 * np.cos(x))
    # A residual of 1e-12 leaves an error of 1e-12 / (1 − e cos E) ≤ 1e-9.
    assert np.abs(E.numpy() - x).max() <= 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_inside_transforms(method: Method) -> None:
    M, e = orbits(15, 0.9)
    M, e = M.reshape(5, 3), e.reshape(5, 3)
    lower = torch.tensor([-9.0, -8.0, -7.0], dtype=D)

    def solve(M: Tensor, e: Tensor, solver: ti.solvers.Method) -> Tensor:
        return ti.root(kepler, torch.zeros_like(M), (M, e), solver=solver, batch_ndim=1, rtol=1e-13).value

    whole, _ = ti.root(kepler, M, (M, e), batch_ndim=2, rtol=1e-13)
    for solver in (method(lower, 9), method()):
        torch.testing.assert_close(torch.vmap(lambda M, e: solve(M, e, solver))(M, e), whole)  # noqa: B023
    jacobian = torch.func.jacrev(lambda M: solve(M, e[0], method(lower, 9)))(M[0])
    torch.testing.assert_close(jacobian, torch.diag(1 / (1 - e[0] * torch.cos(whole[0]))))
    with pytest.raises(TypeError, match=r"lower is a tensor of a torch.func transform.*batch_ndim"):
        torch.vmap(lambda M, e: solve(M, e, method(M - 1, 9)))(M, e)


def test_what_does_not_fit_is_refused() -> None:
    z0 = torch.zeros(2, 3)
    for solver in ("bisection", "chandrupatla", "itp"):
        with pytest.raises(ValueError, match=r"one unknown; a system here has 3\..*batch_ndim=z.ndim"):
            ti.root(lambda z: z, z0, solver=solver, batch_ndim=1)
    with pytest.raises(ValueError, match=r"lower must broadcast to z, of shape \(2, 3\); got a .* shape \(2,\)"):
        ti.root(lambda z: z, z0, solver=Bisection(torch.zeros(2), 1), batch_ndim=2)
    with pytest.raises(ValueError, match="lower must not exceed upper"):
        ti.root(lambda z: z, z0, solver=ITP(1, torch.zeros(3)), batch_ndim=2)
    with pytest.raises(TypeError, match=r"upper must be a number.*got str"):
        Chandrupatla(0, "1")
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(TypeError, match=r"steps of ITP have no derivative.*Implicit\(\)"):
        ti.root(lambda z: z**3 - x, torch.zeros(2), solver="itp", batch_ndim=1, adjoint=ti.Unrolled())


def test_the_automatic_choice_solves_what_newton_does_not() -> None:
    M, _ = orbits(2000, 1.0)
    e = torch.full_like(M, 0.999)
    E, info = ti.root(kepler, torch.zeros_like(M), (M, e), batch_ndim=1, rtol=0.0, atol=1e-12, batched=(True, True))
    assert info.converged.all()
    assert info.solved_by is not None
    assert set(info.solved_by.tolist()) == {0, 1}
    torch.testing.assert_close(E - e * torch.sin(E), M, rtol=0.0, atol=2e-12)  # dE of 1e-12 times 1 + e


def test_a_bracket_may_belong_to_a_later_stage() -> None:
    z0 = torch.tensor([9.0, 0.5, -7.0, 0.3], dtype=D)
    x = torch.tensor([0.1, 0.2, 0.3, 5.0], dtype=D)  # arctan never is 5

    def g(z: Tensor, x: Tensor) -> Tensor:
        return torch.atan(z) - x

    stages = ti.solvers.Polyalgorithm((ti.solvers.Newton(), Chandrupatla(-1, torch.tensor([3.0, 2.0, 1.0, 1.0]))))
    for batched in (None, (True,)):
        z, info = ti.root(g, z0, (x,), solver=stages, batch_ndim=1, batched=batched, on_failure="ignore")
        assert info.solved_by is not None
        assert info.solved_by.tolist() == [1, 0, 1, -1]
        torch.testing.assert_close(z[:3], torch.tan(x[:3]), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("method", METHODS)
def test_entries_that_have_ended_are_put_aside_and_change_nothing(method: Method) -> None:
    M, e = orbits(1000, 0.999)
    rows: list[int] = []

    def counted(E: Tensor, M: Tensor, e: Tensor) -> Tensor:
        rows.append(len(E))
        return kepler(E, M, e)

    whole, parts = (
        ti.root(counted, M, (M, e), solver=method(), batch_ndim=1, rtol=0.0, atol=1e-12, batched=batched)
        for batched in (None, (True, True))
    )
    assert torch.equal(whole.value, parts.value)
    assert torch.equal(whole.info.steps, parts.info.steps)
    assert min(rows) < 500
    assert parts.info.evaluations < whole.info.evaluations
