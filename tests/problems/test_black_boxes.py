"""An answer of somebody else's solver is believed where it is right, in whatever unit its condition is, and only there."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.linear import lu

D = torch.float64
X = torch.tensor([1.0, -2.0, 3.0], dtype=D)
A = torch.tensor([[3.0, 1.0, 0.0], [-1.0, 2.0, 0.5], [0.2, 0.0, 1.5]], dtype=D)


def g(z: Tensor, x: Tensor) -> Tensor:
    return A.to(z) @ z + z**3 / 3 - x


def solution(x: Tensor) -> Tensor:
    """By Newton's method, without any of ours."""
    z = torch.zeros(3, dtype=D)
    for _ in range(50):
        z = z - torch.linalg.solve(A + torch.diag(z**2), g(z, x.to(D)))
    return z.to(x)


def told(solve: Callable[..., Any], *args: Any) -> str:
    """What is said of a call; nothing where all is well."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solve(*args)
    return " ".join(str(warning.message) for warning in caught)


UNITS = [(D, 2.0**k) for k in (-300, -40, -20, 0, 20, 40, 300)] + [(torch.float32, 2.0**k) for k in (-40, 0, 40)]


@pytest.mark.parametrize(("dtype", "unit"), UNITS)
def test_the_unit_of_the_condition_says_nothing(dtype: torch.dtype, unit: float) -> None:
    condition = lambda z, x: unit * g(z, x)  # noqa: E731
    x = X.to(dtype).requires_grad_()
    assert not told(ti.implicit(condition)(solution), x)
    for wrong in (torch.zeros_like, lambda x: solution(x) * 1.01, lambda x: solution(x) + 1e-2):
        assert "answer of the solver was not accepted" in told(ti.implicit(condition)(wrong), x)
    (gradient,) = torch.autograd.grad(ti.implicit(condition)(solution)(x).sum(), x)
    expected = torch.linalg.solve((A + torch.diag(solution(X) ** 2)).T, torch.ones(3, dtype=D))
    torch.testing.assert_close(gradient, expected.to(dtype), rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=0)


@pytest.mark.parametrize("scale", [(1e8, 1.0, 1e-8), (1e-6, 1e3, 1e6)])
def test_nor_do_units_of_its_own_for_each_equation(scale: tuple[float, ...]) -> None:
    condition = lambda z, x: torch.tensor(scale, dtype=D) * g(z, x)  # noqa: E731
    assert not told(ti.implicit(condition)(solution), X)
    for i in range(3):
        off = torch.eye(3, dtype=D)[i] * 1e-2
        assert told(ti.implicit(condition)(lambda x: solution(x) + off), X)  # noqa: B023


def test_each_leaf_has_a_unit_of_its_own_and_one_bad_number_does_not_hide() -> None:
    condition = lambda z, x: {"p": z["p"] - 1e5 * x, "x": 1e3 * (z["x"] - x.sin())}  # noqa: E731
    x = torch.linspace(0.5, 1, 30, dtype=D)
    right = {"p": 1e5 * x, "x": x.sin()}
    assert not told(ti.implicit(condition)(lambda x: right), x)
    bump = 1e-2 * torch.eye(30, dtype=D)[7]
    assert told(ti.implicit(condition)(lambda x: {**right, "x": right["x"] + bump}), x)
    assert told(ti.implicit(condition)(lambda x: {**right, "p": right["p"] * (1 + bump)}), x)


def test_the_tolerance_is_that_of_z() -> None:
    solve = lambda rtol: ti.implicit(g, rtol=rtol, atol=0.0)(lambda x: solution(x) * (1 + 1e-6))  # noqa: E731
    assert not told(solve(3e-6), X)
    assert told(solve(3e-7), X)
    assert told(ti.implicit(g)(lambda x: solution(x) * (1 + 1e-3)), X)


def test_systems_of_a_batch_are_judged_each_for_itself() -> None:
    condition = lambda z, x: 1e6 * (z**3 + z - x)  # noqa: E731
    right = torch.tensor([[0.3, 0.2], [1.0, 2.0], [-3.0, 1e-3]], dtype=D)
    x = (right**3 + right).requires_grad_()
    wrong = right + torch.tensor([[0.0, 0.0], [0.0, 0.01], [0.0, 0.0]], dtype=D)
    solve = ti.implicit(condition, batch_ndim=1, on_failure="nan")(lambda x: wrong)
    assert solve(x).isnan().any(-1).tolist() == [False, True, False]
    sequential = ti.implicit(condition, vmap="sequential", on_failure="nan")
    one = sequential(lambda x: wrong[(x - right**3 - right).abs().sum(-1).argmin()])
    assert torch.vmap(one)(x.detach()).isnan().any(-1).tolist() == [False, True, False]


SCIPY: dict[str, Callable[[Any, Any, Any, Any], Any]] = {
    "fsolve": lambda so, phi, dphi, start: so.fsolve(dphi, start),
    "root": lambda so, phi, dphi, start: so.root(dphi, start, method="broyden1").x,
    "least_squares": lambda so, phi, dphi, start: so.least_squares(dphi, start).x,
    "BFGS": lambda so, phi, dphi, start: so.minimize(phi, start).x,
    "L-BFGS-B": lambda so, phi, dphi, start: so.minimize(phi, start, jac=dphi, method="L-BFGS-B").x,
    "CG": lambda so, phi, dphi, start: so.minimize(phi, start, jac=dphi, method="CG").x,
}


@pytest.mark.parametrize("method", SCIPY)
def test_ordinary_answers_of_scipy_are_believed(method: str) -> None:
    optimize = pytest.importorskip("scipy.optimize")

    def objective(z: Tensor, b: Tensor) -> Tensor:
        return ((z - b).cosh() + z**2 / 2).sum() + z[0] * z[1] / 3

    def gradient(z: Tensor, b: Tensor) -> Tensor:
        return (z - b).sinh() + z + torch.stack([z[1], z[0], 0 * z[2]]) / 3

    def solve(b: Tensor) -> Tensor:
        phi = lambda z: float(objective(torch.from_numpy(z), b))  # noqa: E731
        dphi = lambda z: gradient(torch.from_numpy(z), b).numpy()  # noqa: E731
        return torch.from_numpy(SCIPY[method](optimize, phi, dphi, torch.zeros(3, dtype=D).numpy()))

    for seed in range(5):
        b = torch.randn(3, dtype=D, generator=torch.Generator().manual_seed(seed))
        assert not told(ti.implicit(gradient)(solve), b)


def test_brentq_is_believed_at_a_root_and_not_at_a_pole() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    for a in (-1.0, 0.0, 0.3, 2.0):
        solve = lambda a: torch.tensor(optimize.brentq(lambda z: z**3 + z - float(a), -3, 4), dtype=D)  # noqa: E731
        assert not told(ti.implicit(lambda z, a: z**3 + z - a)(solve), torch.tensor(a, dtype=D))
    pole = lambda a: torch.tensor(optimize.brentq(lambda z: 1 / (z - float(a)), 0, 4.1), dtype=D)  # noqa: E731
    assert told(ti.implicit(lambda z, a: 1 / (z - a))(pole), torch.tensor(1.3, dtype=D))


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e6])
@pytest.mark.parametrize("error", [1e-5, 1e-7, 1e-9])
def test_next_to_a_multiple_root_no_answer_is_believed(unit: float, error: float) -> None:
    x = torch.tensor([1.0, 2.0], dtype=D)
    double = lambda z, x: unit * torch.stack([(z[0] - x[0]) ** 2, z[1] - x[1]])  # noqa: E731
    triple = lambda z, x: unit * (z - x) ** 3  # noqa: E731
    for condition in (double, triple):
        assert "singular" in told(ti.implicit(condition)(lambda x: x + error), x)


def test_a_singular_jacobian_is_said() -> None:
    condition = lambda z, x: torch.stack([z[0] + z[1] - x, 2 * z[0] + 2 * z[1] - 2 * x])  # noqa: E731
    solve = ti.implicit(condition)(lambda x: torch.stack([x / 3, 2 * x / 3 + 1e-9]))
    assert "singular" in told(solve, torch.tensor(1.3, dtype=D))
    said = told(ti.implicit(lambda z, x: z**2 - z - x)(lambda x: x / 24), torch.tensor(12.0, dtype=D))
    assert "singular: " in said  # and no number tells how far off it is


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e6])
def test_many_unknowns_are_judged_without_a_factorisation(unit: float) -> None:
    n = 300
    b = torch.linspace(0, 1, n, dtype=D)
    condition = lambda z, b: unit * (3 * z - z.roll(1) - 0.5 * z.roll(-1) + z**3 / 10 - b)  # noqa: E731
    right = ti.root(lambda z: condition(z, b) / unit, b, rtol=1e-13).value
    assert not told(ti.implicit(condition)(lambda b: right), b)
    wrong = right + 1e-2 * torch.eye(n, dtype=D)[17]
    assert told(ti.implicit(condition)(lambda b: wrong), b)


def test_the_factors_serve_the_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0
    factor = lu.factor

    def counted(F: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal made
        made += 1
        return factor(F)

    monkeypatch.setattr(lu, "factor", counted)
    n = 20
    B = torch.eye(n, dtype=D) * 3 + torch.randn(n, n, dtype=D, generator=torch.Generator().manual_seed(0)) / n
    b = torch.linspace(0.1, 1, n, dtype=D).requires_grad_()
    z = ti.implicit(lambda z, b: B @ z - b)(lambda b: torch.linalg.solve(B, b))(b)
    z.sum().backward()
    assert made == 1
    torch.testing.assert_close(b.grad, torch.linalg.solve(B.T, torch.ones(n, dtype=D)))


def test_a_simulator_that_cycles_is_no_search_with_steps_of_ours() -> None:
    said = told(ti.implicit(lambda z, x: z**2 + x)(torch.ones_like), torch.tensor(1.0, dtype=D))
    assert "no solution, estimated error 1 " in said
    assert "steady state" in said
    assert "0 steps" not in said


def test_what_is_not_finite_is_said_and_the_others_are_judged() -> None:
    x = torch.tensor([1.0, 2.0, 3.0], dtype=D)
    solve = ti.implicit(lambda z, x: z - x, batch_ndim=1)(lambda x: x + torch.tensor([0, torch.nan, 0], dtype=D))
    said = told(solve, x)
    assert "1 of 3 systems" in said
    assert "nonfinite" in said
