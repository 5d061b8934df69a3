"""Branches of solutions: end points and their derivatives in closed form, folds at published values, branches that do not arrive."""

from __future__ import annotations

import math
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
