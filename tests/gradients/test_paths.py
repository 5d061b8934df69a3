"""Whichever path the backward takes, its gradient is the same: each path is forced by the limit that chooses it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.adjoints import linearised_solver
from torchimplicit.condition import Kind
from torchimplicit.layout import Layout
from torchimplicit.linear import Auto, jacobian
from torchimplicit.solvers import auto

from .problems import randn

N = 9


def gradients(problem: str = "root", rows: int = 2, **options: Any) -> tuple[Tensor, ...]:
    W = (randn(N, N, seed=1) / (2 * N**0.5)).requires_grad_()
    x = randn(rows, N, seed=2).requires_grad_()
    f = {"root": lambda z: z - torch.tanh(z @ W.T + x), "fixed_point": lambda z: torch.tanh(z @ W.T + x)}[problem]
    options = {"rtol": 1e-10, **options}
    z, info = getattr(ti, problem)(f, torch.zeros(rows, N, dtype=torch.float64), batch_ndim=1, **options)
    grads = torch.autograd.grad(z.sin().sum(), (x, W))
    return (z.detach(), *grads, info.adjoint.steps)


def exact(rows: int = 2) -> tuple[Tensor, ...]:
    """z from a long plain iteration, the gradient by dense linear algebra."""
    W, x = randn(N, N, seed=1) / (2 * N**0.5), randn(rows, N, seed=2)
    z = torch.zeros(rows, N, dtype=torch.float64)
    for _ in range(400):
        z = torch.tanh(z @ W.T + x)
    s = 1 - z**2
    u = torch.stack([torch.linalg.solve((torch.eye(N) - d[:, None] * W).T, c) for d, c in zip(s, z.cos(), strict=True)])
    return z, s * u, (s * u).T @ z


def same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(torch.allclose(a, b, rtol=0, atol=1e-8) for a, b in zip(found, expected, strict=False))


@pytest.mark.parametrize("dense_limit", [N - 1, N, N + 1])
@pytest.mark.parametrize("fallback_limit", [N - 1, N, N + 1])
@pytest.mark.parametrize("max_steps", [None, 2])
@pytest.mark.parametrize("problem", ["root", "fixed_point"])
def test_automatic_linear_solvers_at_both_limits(
    dense_limit: int, fallback_limit: int, max_steps: int | None, problem: str
) -> None:
    """With two steps GMRES fails, and the second choice answers."""
    solver = Auto(dense_limit=dense_limit, fallback_limit=fallback_limit, max_steps=max_steps, restart=4)
    if max_steps == 2 and dense_limit < N and fallback_limit < N:
        with pytest.warns(ti.ConvergenceWarning, match="derivative"):  # BiCGStab has two steps as well
            gradients(problem, adjoint=ti.Implicit(solver))
        return
    assert same(gradients(problem, adjoint=ti.Implicit(solver)), exact())


@pytest.mark.parametrize("limit", [N - 1, N, N + 1])
def test_dense_and_matrix_free_newton(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "FORMED_LIMIT", limit)
    assert (type(auto.choose(Kind(), Layout.of(torch.zeros(2, N), 1)).stages[0]) is ti.solvers.Newton) == (limit >= N)
    assert same(gradients(), exact())


@pytest.mark.parametrize("entries", [1, 2 * N, 5 * N, 2 * N * N - 1, 2 * N * N])
@pytest.mark.parametrize("transform", [False, True])
def test_dense_jacobians_in_any_number_of_sweeps(
    entries: int, transform: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jacobian, "SWEEP_ENTRIES", entries)
    assert same(gradients(adjoint=ti.Implicit(ti.linear.LU())), exact())
    if transform:
        W, xs = randn(N, N, seed=1) / (2 * N**0.5), randn(2, N, seed=2)

        def loss(x: Tensor) -> Tensor:
            zero = torch.zeros(N, dtype=torch.float64)
            return ti.root(lambda z: z - torch.tanh(W @ z + x), zero, rtol=1e-10, max_steps=10).value.sin().sum()

        assert torch.allclose(torch.vmap(torch.func.grad(loss))(xs), exact()[1], atol=1e-8)


@pytest.mark.parametrize("refinements", [1, 2, 8])
@pytest.mark.parametrize("rtol", [1e-3, 1e-6, 1e-10])
def test_the_forward_factors_refined_or_given_up(
    refinements: int, rtol: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chord's factors are those of the start, so few refinements of them are not enough and fresh factors serve."""
    monkeypatch.setattr(linearised_solver, "REFINEMENTS", refinements)
    adjoint = ti.Implicit(rtol=1e-10)
    z, *grads, _ = gradients(solver="chord", rtol=rtol, adjoint=adjoint)
    refined = gradients(solver="chord", rtol=rtol, adjoint=ti.Implicit(ti.linear.LU(), rtol=1e-10))
    assert same((z, *grads), refined[:3])
    assert same((z, *grads), exact()) or rtol > 1e-8


def test_a_tighter_backward_than_forward_is_what_its_own_tolerance_says() -> None:
    """The gradient of the condition at the z that was found, exactly; the forward's error is another matter."""
    W = randn(N, N, seed=1) / (2 * N**0.5)
    x = randn(N, seed=2).requires_grad_()
    zero = torch.zeros(N, dtype=torch.float64)
    adjoint = ti.Implicit(rtol=1e-13)
    z = ti.root(lambda z: z - torch.tanh(W @ z + x), zero, solver="newton", rtol=1e-2, adjoint=adjoint).value
    (grad,) = torch.autograd.grad(z.sum(), x)
    s = 1 - torch.tanh(W @ z.detach() + x.detach()) ** 2
    u = torch.linalg.solve((torch.eye(N) - s[:, None] * W).T, torch.ones(N, dtype=torch.float64))
    assert torch.allclose(grad, s * u, rtol=0, atol=1e-11)
