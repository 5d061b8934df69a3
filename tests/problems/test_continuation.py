"""Branches of solutions: end points and their derivatives in closed form, folds at published values, branches that do not arrive."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti

D = torch.float64
BRATU_FOLD = 3.513830719125161  # 8 y² / cosh² y at the root of y tanh y = 1


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=D)


def chebyshev_laplacian(n: int) -> Tensor:
    """d²/dx² on [0, 1] with zeros at both ends, at Chebyshev's points (Trefethen, Spectral Methods in MATLAB, 2000, chapter 6)."""
    k = torch.arange(n + 1, dtype=D)
    x, c = torch.cos(math.pi * k / n), torch.ones(n + 1, dtype=D)
    c[0] = c[-1] = 2
    c = c * (-1) ** k
    d = (c.unsqueeze(1) / c) / (x.unsqueeze(1) - x + torch.eye(n + 1, dtype=D))
    d = 2 * (d - torch.diag(d.sum(1)))
    return (d @ d)[1:-1, 1:-1]


def bratu(u: Tensor, strength: Tensor, L: Tensor) -> Tensor:
    return L @ u + strength * torch.exp(u)


def bratu_maximum(strength: float, upper: bool) -> float:
    """2 ln cosh y with 8 y² / cosh² y = λ, y below or above the fold's 1.19967864."""
    low, high = (1.1996786402577, 20.0) if upper else (0.0, 1.1996786402577)
    for _ in range(200):
        y = (low + high) / 2
        low, high = (y, high) if (8 * y * y / math.cosh(y) ** 2 < strength) != upper else (low, y)
    return 2 * math.log(math.cosh(low))


def test_the_end_and_its_derivative_near_a_fold() -> None:
    for end in (1e-2, 1e-4, 1e-6):
        s1 = number(end).requires_grad_()
        z, info, branch = ti.continuation(lambda z, s: z**2 - s, number(1.0), 1.0, s1, rtol=1e-14)
        assert info.converged
        assert z.item() == pytest.approx(end**0.5, rel=1e-8)
        (dz,) = torch.autograd.grad(z, s1)
        assert float(dz) == pytest.approx(0.5 / end**0.5, rel=1e-7)
        assert branch.s[-1] == end
        assert torch.allclose(branch.z**2, branch.s, rtol=1e-6, atol=1e-12)


def test_two_folds_of_a_cubic_are_passed() -> None:
    a = number(1.0).requires_grad_()
    z, info, branch = ti.continuation(lambda z, s, a: z**3 - a * z + s, number(1.3), -1.0, 1.0, (a,))
    assert info.converged
    root = -1.324717957244746  # the plastic number
    assert z.item() == pytest.approx(root, rel=1e-9)
    (da,) = torch.autograd.grad(z, a)
    assert float(da) == pytest.approx(root / (3 * root**2 - 1), rel=1e-7)
    fold = 2 / 27**0.5
    torch.testing.assert_close(branch.folds, torch.tensor([fold, -fold], dtype=D), rtol=1e-10, atol=0.0)
    # From one point to the next z falls all the way: the branch is one curve, nothing is jumped over.
    assert (branch.z.diff() < 0).all()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("strength", [1.0, 3.0])
def test_both_solutions_of_bratus_problem(strength: float) -> None:
    L = chebyshev_laplacian(32)  # enough for the sharp peak of the upper solution
    for folds in (0, 1):
        u, info, branch = ti.continuation(bratu, torch.zeros(31, dtype=D), 0.0, strength, (L,), folds=folds)
        assert info.converged
        assert float(u[15]) == pytest.approx(bratu_maximum(strength, upper=folds == 1), rel=1e-7)  # in the middle
        assert len(branch.folds) == folds
        assert all(float(s) == pytest.approx(BRATU_FOLD, rel=1e-10) for s in branch.folds)


def test_a_branch_that_turns_back_before_the_end_says_so() -> None:
    L = chebyshev_laplacian(12)
    start = torch.zeros(11, dtype=D)
    with pytest.warns(ti.ConvergenceWarning, match=r"not followed to s1 = 4: max_points was reached .* with 1 folds"):
        u, info, branch = ti.continuation(bratu, start, 0.0, 4.0, (L.requires_grad_(),), max_points=40)
    assert not info.converged
    assert not u.requires_grad
    assert branch.z.shape == (40, 11)
    assert float(branch.folds[0]) == pytest.approx(BRATU_FOLD, rel=1e-5)  # of 11 unknowns
    with pytest.raises(ti.ConvergenceError, match="may turn back before s1"):
        ti.continuation(bratu, start, 0.0, 4.0, (L,), max_points=40, on_failure="raise")
    u, *_ = ti.continuation(bratu, start, 0.0, 4.0, (L,), max_points=40, on_failure="nan")
    assert u.isnan().all()


def test_a_start_without_a_solution_and_a_branch_that_ends() -> None:
    with pytest.warns(ti.ConvergenceWarning, match="not corrected to a solution at s0"):
        ti.continuation(lambda z, s: z**2 + 1 + s, number(1.0), 0.0, 1.0)
    with pytest.warns(ti.ConvergenceWarning, match="steps became too short"):
        ti.continuation(lambda z, s: torch.sqrt(1 - z) - s + z, number(0.0), 1.0, 2.0)  # not defined for z > 1


def test_trees_modules_and_captured_tensors() -> None:
    weight = number(0.7).requires_grad_()

    def g(z: dict[str, Tensor], s: Tensor) -> dict[str, Tensor]:
        return {"a": z["a"] - s * torch.cos(weight * z["b"]), "b": z["b"] - s * torch.sin(z["a"].sum())}

    z0 = {"a": torch.zeros(2, dtype=D), "b": number(0.0)}
    z, info, branch = ti.continuation(g, z0, 0, 1.5, rtol=1e-12)
    direct = ti.root(g, {name: leaf.detach() for name, leaf in z.items()}, (number(1.5),), rtol=1e-12).value
    assert info.converged
    assert branch.z["a"].shape == (len(branch.s), 2)
    torch.testing.assert_close(
        torch.autograd.grad(z["b"], weight), torch.autograd.grad(direct["b"], weight), rtol=1e-9, atol=0.0
    )


def line(z: Tensor, s: Tensor) -> Tensor:
    return z - s


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"s0": 1.0}, ValueError, "two different numbers.*ti.root"),
        ({"s0": 1.0, "s1": 1 + 1e-9, "z0": torch.zeros(())}, ValueError, "two different numbers in z's dtype.*float32"),
        ({"s0": "0"}, TypeError, "s0 must be a real number, or a 0-d tensor.*str '0'"),
        ({"s0": True}, TypeError, "s0.*bool True"),
        ({"s0": torch.tensor(1j)}, TypeError, "s0.*complex64"),
        ({"s1": torch.ones(2)}, TypeError, r"s1.*0-d tensor.*\(2,\)"),
        ({"s1": torch.tensor(2.0, device="meta")}, TypeError, "s1.*meta"),
        ({"s1": torch.nan}, ValueError, "s1 must be finite.*nan"),
        ({"s0": -torch.inf}, ValueError, "s0 must be finite"),
        ({"z0": 0.0}, TypeError, r"z0 must be a tensor.*float 0\.0"),
        ({"g": 3}, TypeError, r"function of \(z, s, \*args\); got int 3"),
        ({"args": 3}, TypeError, "args must be a tuple"),
        ({"max_points": 0}, ValueError, "max_points"),
        ({"folds": -1}, ValueError, "folds must be an integer >= 0.*-1"),
        ({"folds": 1.5}, ValueError, "folds must be an integer >= 0.*1.5"),
        ({"solver": "newtn"}, ValueError, "newtn"),
        ({"rtol": -1}, ValueError, "rtol"),
        ({"adjoint": ti.Implicit}, TypeError, "adjoint"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    """At once: before the branch is followed."""

    def unreached(z: Tensor, s: Tensor) -> Tensor:
        raise AssertionError

    with pytest.raises(error, match=f"(?s){message}"):
        ti.continuation(**{"g": unreached, "z0": number(0.0), "s0": 0.0, "s1": 1.0, **arguments})


def test_a_start_that_is_no_number_is_reported() -> None:
    with pytest.warns(ti.ConvergenceWarning, match="Start nearer to a solution at s0.*nonfinite"):
        info = ti.continuation(line, number(torch.nan), 0.0, 1.0).info
    assert info.status == ti.Status.NONFINITE


def test_inside_a_transform_it_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"no torch.func transform .*ti.root inside"):
        torch.func.grad(lambda a: ti.continuation(lambda z, s: z - a * s, number(0.0), 0.0, 1.0).value)(number(1.0))


def rightmost(s: float, e: float) -> float:
    """The largest root of s z − z³ + e, for s, e > 0, by bisection."""
    low, high = s**0.5, 2 * (s**0.5 + e)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if s * middle - middle**3 + e > 0 else (low, middle)
    return low


@pytest.mark.sampled(9)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [1.0, 10.0])
@pytest.mark.parametrize("e", [1e-1, 1e-2, 1e-3, -1e-3, 1e-4, 1e-5, 1e-6, -1e-6])
def test_an_imperfect_pitchfork_is_followed_to_its_own_side(e: float, size: float, dtype: torch.dtype) -> None:
    """z = 0 goes straight on beyond s = 0 almost to rounding, and is another branch there."""
    start = torch.tensor(e / size, dtype=dtype)
    z, info, branch = ti.continuation(lambda z, s: s * z - z**3 + e, start, -size, size)
    assert info.converged
    assert z.item() == pytest.approx(math.copysign(rightmost(size, abs(e)), e), rel=1e-5)
    assert not len(branch.folds)
    assert not len(branch.crossings)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("e", [1e-2, 1e-4, 1e-6])
def test_an_imperfect_transcritical_point(e: float) -> None:
    """Of s z − z² ± e: two branches that do not cross, or two that turn back before they meet."""
    for start, side in ((e, 1), (-1.0, -1)):
        z, _, branch = ti.continuation(lambda z, s: s * z - z**2 + e, number(start), -1.0, 1.0)
        assert z.item() == pytest.approx((1 + side * (1 + 4 * e) ** 0.5) / 2, abs=1e-8)
        assert not len(branch.folds)
    with pytest.warns(ti.ConvergenceWarning, match="max_points was reached .* with 1 folds"):
        branch = ti.continuation(lambda z, s: s * z - z**2 - e, number(-e), -1.0, 1.0, max_points=60).branch
    assert float(branch.folds[0]) == pytest.approx(-2 * e**0.5, rel=1e-6)


SHAPES = {
    "straight": lambda s: 2 * s,
    "steep": lambda s: torch.tanh(20 * s),
    "peak": lambda s: torch.exp(-((s / 0.05) ** 2)),
    "waves": lambda s: torch.sin(5 * s),
    "corner": lambda s: torch.sqrt(s**2 + 1e-4),
}


@pytest.mark.sampled(7)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_branches_close_to_each_other_are_not_confused(shape: str, dtype: torch.dtype) -> None:
    def a(s: Tensor) -> Tensor:
        return SHAPES[shape](s)

    first, last = (a(torch.tensor(s, dtype=dtype)) for s in (-1.0, 1.0))
    for side, tiny in ((-1, 0.0), (1, 1e-5)):
        above = 0.025 + side * (0.025**2 + tiny) ** 0.5
        g = lambda z, s: (z - a(s)) * (z - a(s) - 0.05) - tiny  # noqa: B023, E731
        z, info, branch = ti.continuation(g, first + above, -1.0, 1.0)
        assert info.converged
        assert float(z) == pytest.approx(float(last) + above, abs=1e-4)
        torch.testing.assert_close(branch.z, a(branch.s) + above, rtol=0.0, atol=2e-4)  # all the way


def test_a_neighbour_of_the_same_orientation() -> None:
    """Of a holomorphic function every branch has a determinant > 0: the points themselves tell that a step has left its branch."""

    def middle(s: Tensor) -> Tensor:
        return torch.complex(torch.tanh(20 * s), s / 2)

    for side in (0.0, 0.05):
        z = ti.continuation(
            lambda z, s: (z - middle(s)) * (z - middle(s) - 0.05), middle(number(-1.0)) + side, -1.0, 1.0
        ).value
        assert complex(z) == pytest.approx(complex(middle(number(1.0)) + side), abs=1e-6)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_branches_that_cross_are_followed_straight_on_and_it_is_said(dtype: torch.dtype) -> None:
    def g(z: Tensor, s: Tensor) -> Tensor:
        return (z - torch.sin(s)) * (z + 0.3 * s + 0.2)

    start = torch.sin(torch.tensor(-1.0, dtype=dtype))
    with pytest.warns(ti.ConvergenceWarning, match=r"Another branch crosses this one at s = -0\.154"):
        z, info, branch = ti.continuation(g, start, -1.0, 1.0)
    assert info.converged
    assert z.item() == pytest.approx(math.sin(1.0), rel=1e-6)
    assert float(branch.crossings) == pytest.approx(-0.154317, abs=1e-3)  # sin s = −0.3 s − 0.2
    with pytest.raises(ti.ConvergenceError, match="crosses"):
        ti.continuation(g, start, -1.0, 1.0, on_failure="raise")


def test_at_a_crossing_there_is_no_branch_to_begin_with() -> None:
    with pytest.warns(ti.ConvergenceWarning, match="at s0 itself.*Start at another s0"):
        ti.continuation(lambda z, s: s * z - z**3, number(0.0), 0.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("e", [1e-2, -1e-3])
def test_an_imperfect_pitchfork_without_a_determinant(e: float) -> None:
    """n = 260, matrix-free. With s < 0 and far from 0 all is small; at the end u is near ± 1 everywhere."""
    x = torch.linspace(0, 1, 260, dtype=D)
    mean = torch.softmax(-(((x.unsqueeze(1) - x) / 0.2) ** 2), 1)

    def g(u: Tensor, s: Tensor) -> Tensor:
        return s * u - u**3 + e * (1 + 0.3 * torch.sin(7 * x)) - (u - mean @ u) / 2

    u, info, branch = ti.continuation(g, torch.full_like(x, e), -1.0, 1.0)
    assert info.converged
    assert not len(branch.crossings)
    assert float((u - math.copysign(1.0, e)).abs().max()) < 1e-2


@pytest.mark.sampled(2)
@pytest.mark.parametrize("e", [1e-2, 1e-4, 1e-6])
def test_what_stands_for_the_determinant_tells_neighbours_apart(e: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On systems so small that the truth is known; s and z of another size than g."""
    monkeypatch.setattr("torchimplicit.problems.curve.FORMED_LIMIT", 0)
    z = ti.continuation(lambda z, s: s * z - z**2 + e, number(-10.0), -10.0, 10.0).value
    assert z.item() == pytest.approx(5 - (25 + e) ** 0.5, abs=1e-9)
    z = ti.continuation(lambda z, s: s * z - z**3 + e, number(e), -1.0, 1.0).value
    assert z.item() == pytest.approx(rightmost(1.0, e), rel=1e-8)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_the_unit_of_z_plays_no_part(unit: float) -> None:
    """Of one leaf, whatever that of the other is."""

    def g(z: dict[str, Tensor], s: Tensor, unit: float) -> dict[str, Tensor]:
        a = z["a"] / unit
        return {"a": a**3 - a + s + 0.1 * z["b"], "b": z["b"] - torch.cos(a)}

    def follow(unit: float) -> Any:
        return ti.continuation(g, {"a": number(1.3 * unit), "b": number(0.3)}, -1.0, 1.0, (unit,))

    plain, other = follow(1.0), follow(unit)
    assert abs(len(plain.branch.s) - len(other.branch.s)) <= 1
    torch.testing.assert_close(other.value["a"] / unit, plain.value["a"], rtol=1e-8, atol=0.0)
    torch.testing.assert_close(other.branch.folds, plain.branch.folds, rtol=1e-8, atol=0.0)


def test_a_solver_that_leaves_the_branch_at_the_end_is_reported() -> None:
    elsewhere = ti.solvers.Bisection(-3.0, -0.5)
    for policy, spoilt in (("warn", False), ("nan", True)):
        call = {"solver": elsewhere, "on_failure": policy}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            z = ti.continuation(lambda z, s: s * z - z**3 + 1e-3, number(1e-3), -1.0, 1.0, **call).value
        assert bool(z.isnan()) is spoilt
        assert any("The solver has left the branch" in str(w.message) for w in caught) is not spoilt


@pytest.mark.parametrize(
    ("g", "start", "end", "evaluations"),
    [
        (lambda z, s: z - s, 0.0, 1.0, 24),
        (lambda z, s: z - torch.exp(s), 1.0, 1.0, 71),
        (lambda z, s: z**3 + z - 10 * s, 0.0, 1.0, 66),
        (lambda z, s: z - s * torch.sin(z) - 1, 1.0, 0.9, 57),
    ],
)
def test_an_easy_branch_costs_no_more_than_without_the_precautions(
    g: Any, start: float, end: float, evaluations: int
) -> None:
    """The numbers are those of steps by the tangent up to a quarter of the way, bounded by its angle only."""
    count = 0

    def counted(z: Tensor, s: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return g(z, s)

    assert ti.continuation(counted, number(start), 0.0, end).info.converged
    assert count <= evaluations
