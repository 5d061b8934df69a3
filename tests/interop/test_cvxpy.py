"""Problems of cvxpy as layers: its own solutions, derivatives of every order, batches, and what is refused."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import torchimplicit as ti
from tests.programs.random_programs import D
from torchimplicit import ConvergenceWarning

cp = pytest.importorskip("cvxpy", reason="the extra cvxpy is not installed")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def solved(problem: Any, parameters: list[Any], values: list[Tensor], variables: list[Any]) -> list[Tensor]:
    """By cvxpy itself."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.value = value.detach().numpy()
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    return [torch.as_tensor(np.asarray(variable.value)) for variable in variables]


def regression() -> tuple[Any, list[Any], list[Any], list[Tensor]]:
    """A fit with an ℓ1 penalty: parameters A (a matrix), b, and a number."""
    A, b, penalty = cp.Parameter((6, 3)), cp.Parameter(6), cp.Parameter(nonneg=True)
    x, free = cp.Variable(3), cp.Variable((2, 2))
    fit = cp.sum_squares(A @ x - b + free[0, 0]) / 2 + penalty * cp.norm1(x)
    apart = cp.sum_squares(free - np.arange(4).reshape(2, 2))
    values = [random(6, 3), random(6, seed=1), torch.tensor(0.9, dtype=D)]
    return cp.Problem(cp.Minimize(fit + apart)), [A, b, penalty], [x, free], values


def mixed() -> tuple[Any, list[Any], list[Any], list[Tensor]]:
    """Second-order, exponential and semidefinite cones, symmetric and diagonal parameters and variables."""
    x, S = cp.Variable(3), cp.Variable((3, 3), PSD=True)
    a, W, d = cp.Parameter(3), cp.Parameter((3, 3), symmetric=True), cp.Parameter((2, 2), diag=True)
    T = cp.Variable((2, 2), symmetric=True)
    objective = cp.norm(x - a) + cp.log_sum_exp(x) + cp.sum_squares(S - W) + cp.sum_squares(T - d) + cp.sum_squares(x)
    value = random(3, 3, seed=3)
    values = [3 * random(3, seed=2), value + value.mT, torch.diag(random(2, seed=4))]
    return cp.Problem(cp.Maximize(-objective), [cp.sum(x) == 1, T[0, 1] >= 0.3]), [a, W, d], [x, S, T], values


@pytest.mark.parametrize("posed", [regression, mixed])
def test_solutions_are_those_of_cvxpy_and_derivatives_those_of_differences(posed: Any) -> None:
    problem, parameters, variables, values = posed()
    layer = ti.interop.cvxpy(problem, parameters, variables)
    found = layer(*values)
    assert layer.last_info.converged
    for ours, theirs in zip(found, solved(problem, parameters, values, variables), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert gradcheck(layer, [value.requires_grad_() for value in values], fast_mode=True)


@pytest.mark.parametrize("posed", [regression, pytest.param(mixed, marks=pytest.mark.slow)])
def test_second_derivatives_are_those_of_differences(posed: Any) -> None:
    problem, parameters, variables, values = posed()
    layer = ti.interop.cvxpy(problem, parameters, variables[:1])
    assert gradgradcheck(layer, [value.requires_grad_() for value in values], fast_mode=True)


def test_constraints_that_say_the_same_twice_leave_the_derivative_exact() -> None:
    """‖x‖₁ over x ≥ 0: at x = 0 three inequalities hold two unknowns, but no parameter moves them apart."""
    x, a = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - a) / 2 + cp.norm1(x) / 2), [x >= 0])
    layer = ti.interop.cvxpy(problem, [a], [x])
    value = torch.tensor([2.0, 0.1, -1.0], dtype=D)
    torch.testing.assert_close(layer(value)[0], torch.tensor([1.5, 0, 0], dtype=D))
    jacobian = torch.autograd.functional.jacobian(lambda a: layer(a)[0], value)
    torch.testing.assert_close(jacobian, torch.diag(torch.tensor([1.0, 0, 0], dtype=D)))


def test_values_in_batches_broadcast_and_transforms_give_the_same() -> None:
    problem, parameters, variables, (A, b, penalty) = regression()
    layer = ti.interop.cvxpy(problem, parameters, variables)
    b = torch.stack([b, 2 * b, -b])
    x, free = layer(A, b, penalty)
    assert x.shape == (3, 3)
    assert free.shape == (3, 2, 2)
    assert layer.last_info.status.shape == (3,)
    for i in range(3):
        torch.testing.assert_close(x[i], layer(A, b[i], penalty)[0])
    torch.testing.assert_close(torch.func.vmap(lambda b: layer(A, b, penalty)[0])(b), x)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda b: layer(A, b, penalty)[0]))(b)
    expected = torch.stack([torch.autograd.functional.jacobian(lambda b: layer(A, b, penalty)[0], row) for row in b])
    torch.testing.assert_close(jacobians, expected)
    both = layer(random(2, 1, 6, 3), b, penalty)[0]
    assert both.shape == (2, 3, 3)


def test_each_system_of_a_batch_has_its_own_end() -> None:
    x, top = cp.Variable(2), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.sum(x)), [cp.norm(x) <= top])
    layer = ti.interop.cvxpy(problem, [top], [x])
    with pytest.warns(ConvergenceWarning, match="primal_infeasible"):
        (z,) = layer(torch.tensor([1.0, -1.0, 2.0], dtype=D))
    assert layer.last_info.status_names == ["converged", "primal_infeasible", "converged"]
    torch.testing.assert_close(z[0], torch.full((2,), -(0.5**0.5), dtype=D))
    assert z[1].isnan().all()


def test_large_problems_are_sparse() -> None:
    """A chain of 300 numbers, smoothed: x − λ x'' = y, tridiagonal."""
    n = 300
    y, x = cp.Parameter(n), cp.Variable(n)
    layer = ti.interop.cvxpy(cp.Problem(cp.Minimize(cp.sum_squares(x - y) + 2 * cp.sum_squares(cp.diff(x)))), [y], [x])
    value = random(n).requires_grad_()
    (z,) = layer(value)
    L = torch.diff(torch.eye(n, dtype=D), dim=0)
    system = torch.eye(n, dtype=D) + 2 * L.mT @ L
    torch.testing.assert_close(z, torch.linalg.solve(system, value), rtol=1e-8, atol=1e-8)
    weights = random(n, seed=1)
    (grad,) = torch.autograd.grad(z @ weights, value)
    torch.testing.assert_close(grad, torch.linalg.solve(system, weights), rtol=1e-7, atol=1e-8)


def test_a_layer_is_a_module_that_can_be_copied() -> None:
    problem, parameters, variables, values = regression()
    layer = ti.interop.cvxpy(problem, parameters, variables, rtol=1e-6)
    before = layer(*values)[0]
    again = pickle.loads(pickle.dumps(layer))
    assert again.last_info is None
    torch.testing.assert_close(again(*values)[0], before)
    assert not list(layer.parameters())
    single = layer(*(value.float() for value in values))[0]
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), before, rtol=1e-4, atol=1e-4)


def test_what_is_no_layer_is_refused() -> None:
    x, a, b = cp.Variable(2), cp.Parameter(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - a)), [x >= b])
    for message, arguments in (
        ("takes a cvxpy.Problem", (3, [], [])),
        ("must be given all parameters", (problem, [a], [x])),
        ("does not occur in the problem", (problem, [a, b, cp.Parameter(2)], [x])),
        ("expected a cvxpy.Variable", (problem, [a, b], [a])),
        ("not convex", (cp.Problem(cp.Maximize(cp.sum_squares(x - a))), [a], [x])),
        (
            "not disciplined in its parameters",
            (cp.Problem(cp.Minimize(cp.sum_squares(x) + (a @ b) * x[0])), [a, b], [x]),
        ),
        ("integers", (cp.Problem(cp.Minimize(cp.sum(cp.Variable(2, integer=True)) + cp.sum_squares(x - a))), [a], [x])),
        (
            "power cones",
            (cp.Problem(cp.Minimize(cp.sum_squares(x - a)), [cp.PowCone3D(x[0], x[1], x[0], 0.3)]), [a], [x]),
        ),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            ti.interop.cvxpy(*arguments)
    layer = ti.interop.cvxpy(problem, [a, b], [x])
    with pytest.raises(ValueError, match="has 2 parameters; got 1"):
        layer(torch.zeros(2, dtype=D))
    with pytest.raises(ValueError, match=r"must have shape \(..., 2,\)"):
        layer(torch.zeros(2, dtype=D), torch.zeros(3, dtype=D))
