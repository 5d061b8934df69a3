"""A recurrence, or implicit steps in time, solved for all times at once: beside the loop over time, value and gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.linear import Memory

D = torch.float64


def before(z: Tensor, first: Tensor) -> Tensor:
    """Each element's predecessor, (..., T, p)."""
    return torch.cat([first.expand(*z.shape[:-2], 1, z.shape[-1]), z[..., :-1, :]], -2)


def one_by_one(f: Callable[[Tensor, Tensor], Tensor], x: Tensor, first: Tensor) -> Tensor:
    z, found = first.expand(*x.shape[:-2], -1), []
    for xt in x.unbind(-2):
        z = f(z, xt)
        found.append(z)
    return torch.stack(found, -2)


def all_at_once(f: Callable[[Tensor, Tensor], Tensor], x: Tensor, first: Tensor, **options: Any) -> Any:
    def g(z: Tensor, x: Tensor) -> Tensor:
        return z - f(before(z, first), x)

    start = torch.zeros(*x.shape[:-1], len(first), dtype=x.dtype)
    return ti.root(g, start, (x,), batch_ndim=x.ndim - 2, **{"rtol": 1e-12, "on_failure": "raise"} | options)


def compared(f: Callable[[Tensor, Tensor], Tensor], x: Tensor, first: Tensor, **options: Any) -> Any:
    """The info, where value and gradient are those of the loop."""
    z, info = all_at_once(f, x, first, **options)
    expected = one_by_one(f, x, first)
    weights = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad((weights * z).sum(), x)
    (wanted,) = torch.autograd.grad((weights * expected).sum(), x)
    torch.testing.assert_close(z, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-9)
    return info


def cell(p: int, inputs: int, gain: float = 0.5) -> Callable[[Tensor, Tensor], Tensor]:
    W, U = gain * torch.randn(p, p, dtype=D) / p**0.5, torch.randn(p, inputs, dtype=D)
    return lambda z, x: torch.tanh(z @ W.mT + x @ U.mT)


def test_a_gated_unit() -> None:
    gru = torch.nn.GRUCell(3, 9, dtype=D)

    def f(z: Tensor, x: Tensor) -> Tensor:
        return gru(x.reshape(-1, 3), z.reshape(-1, 9)).view(z.shape)

    memory = Memory()
    x = torch.randn(300, 3, dtype=D, requires_grad=True)
    info = compared(f, x, torch.zeros(9, dtype=D), sparsity=memory)
    assert info.steps < 10
    assert info.evaluations < 12  # of all times at once, where the loop takes 300 of one
    assert "band LU" in info.linear
    assert memory.setups == 1  # for all steps and the backward


@pytest.mark.parametrize("batch", [(), (4,)])
def test_a_batch_of_sequences(batch: tuple[int, ...]) -> None:
    x = torch.randn(*batch, 120, 2, dtype=D, requires_grad=True)
    compared(cell(5, 2), x, torch.ones(5, dtype=D))


def test_float32() -> None:
    x = torch.randn(200, 2, dtype=D)
    W, U = 0.3 * torch.randn(4, 4), torch.randn(4, 2)
    z = all_at_once(lambda z, x: torch.tanh(z @ W.mT + x @ U.mT), x.float(), torch.zeros(4), rtol=1e-6).value
    W, U = W.double(), U.double()
    expected = one_by_one(lambda z, x: torch.tanh(z @ W.mT + x @ U.mT), x, torch.zeros(4, dtype=D))
    torch.testing.assert_close(z.double(), expected, rtol=1e-5, atol=1e-5)


def test_implicit_steps() -> None:
    """A damped pendulum, driven, by implicit Euler's rule: each step of the loop is a root of its own."""
    dt = 0.1

    def field(z: Tensor, x: Tensor) -> Tensor:
        a, b = z.unbind(-1)
        return torch.stack([b, x[..., 0] - a.sin() - b], -1)

    first, x = torch.tensor([1.0, 0.0], dtype=D), torch.randn(60, 1, dtype=D, requires_grad=True)
    z, info = ti.root(
        lambda z, x: z - before(z, first) - dt * field(z, x),
        first.expand(60, 2).clone(),
        (x,),
        rtol=1e-12,
        sparsity="detect",
    )
    state, found = first, []
    for xt in x:
        state = ti.root(lambda s, old, xt: s - old - dt * field(s, xt), state.detach(), (state, xt), rtol=1e-13).value
        found.append(state)
    expected = torch.stack(found)
    torch.testing.assert_close(z, expected, rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad((weights * z).sum(), x)
    (wanted,) = torch.autograd.grad((weights * expected).sum(), x)
    torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-9)
    assert info.steps < 10


def test_trapezoidal_steps_share_one_factorisation() -> None:
    """Of a rod that cools: each step is a root, all of them and their backwards by the factors that a ``Memory`` keeps. Exact in the
    conductivity and in the length of the step, against dense matrices."""
    n, steps, memory = 300, 10, ti.linear.Memory()
    start = torch.sin(torch.arange(1, n + 1, dtype=D) / 50)
    h, k = (torch.tensor(value, dtype=D, requires_grad=True) for value in (0.7, 1.3))

    def field(u: Tensor, k: Tensor) -> Tensor:
        return k * torch.nn.functional.pad(u, (1, 1)).diff(n=2)

    def balance(new: Tensor, known: Tensor, h: Tensor, k: Tensor) -> Tensor:
        return new - known - h / 2 * field(new, k)

    u = expected = start
    for _ in range(steps):
        known = u + h / 2 * field(u, k)
        u = ti.root(balance, u.detach(), (known, h, k), sparsity=memory, rtol=1e-12).value
    L = torch.diag(torch.full((n,), -2.0, dtype=D))
    L = L + torch.diag(torch.ones(n - 1, dtype=D), 1) + torch.diag(torch.ones(n - 1, dtype=D), -1)
    for _ in range(steps):
        expected = torch.linalg.solve(torch.eye(n, dtype=D) - h / 2 * k * L, expected + h / 2 * k * (L @ expected))
    torch.testing.assert_close(u, expected, rtol=1e-10, atol=1e-12)
    found, wanted = (torch.autograd.grad(end.square().sum(), (h, k)) for end in (u, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert memory.setups == 1


def test_a_recurrence_on_which_newton_overflows() -> None:
    """At z = 0 the recurrence expands; at the solution it contracts. The flow goes there in fewer steps than there are times."""
    draw = torch.Generator().manual_seed(0)
    W = 1.2 * torch.randn(8, 8, dtype=D, generator=draw) / 8**0.5
    x = (0.3 * torch.randn(400, 8, dtype=D, generator=draw)).requires_grad_()
    first = torch.zeros(8, dtype=D)
    info = compared(lambda z, x: torch.tanh(z @ W.mT + x), x, first)
    assert info.tried[-1] == "PseudoTransient"
    assert info.steps < 100


def test_a_chaotic_recurrence_is_a_failure_with_words() -> None:
    """Its solution has errors of size one after some 60 steps, whoever computes it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        info = all_at_once(
            lambda z, x: 3.9 * z * (1 - z) + x,
            1e-3 * torch.rand(300, 1, dtype=D),
            torch.full((1,), 0.3, dtype=D),
            on_failure="warn",
        ).info
    assert not info.converged
    assert "The root was not found" in str(caught[0].message)


def test_times_that_determine_nothing() -> None:
    """z₂₀ appears in no equation of its own: J has a singular block on its diagonal, and no z is a solution."""
    own = torch.ones(300, 1, dtype=D)
    own[20] = 0
    x = torch.randn(300, 2, dtype=D)
    info = ti.root(
        lambda z, x: own * z - 0.5 * before(z, torch.zeros(2, dtype=D)) - x,
        torch.zeros(300, 2, dtype=D),
        (x,),
        on_failure="ignore",
    ).info
    assert not info.converged


def test_steps_of_a_linear_equation_reuse_one_factorisation() -> None:
    """z ← z + dt (A z + x), implicitly, many times: one matrix, factorised once for all steps and all of their adjoints."""
    n, dt, steps = 300, 0.5, 10
    line = torch.arange(n - 1)
    A = torch.diag(torch.full((n,), -2.0, dtype=D)) + torch.diag(torch.ones(n - 1, dtype=D), 1)
    A[line + 1, line] = 0.5  # asymmetric

    def rate(z: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(z, (1, 1))
        return -2 * z + padded[2:] + 0.5 * padded[:-2]

    memory = Memory()
    x = torch.randn(n, dtype=D, requires_grad=True)
    z = torch.zeros(n, dtype=D)
    for _ in range(steps):
        z = ti.root(
            lambda new, old, x: new - old - dt * (rate(new) + x), z.detach(), (z, x), sparsity=memory, rtol=1e-12
        ).value
    weights = torch.randn(n, dtype=D)
    (gradient,) = torch.autograd.grad((weights * z).sum(), x)
    assert memory.setups == 1
    inverse = torch.linalg.inv(torch.eye(n, dtype=D) - dt * A)
    total = dt * sum(torch.linalg.matrix_power(inverse, k) for k in range(1, steps + 1))
    torch.testing.assert_close(z, total @ x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient, total.mT @ weights, rtol=1e-9, atol=1e-9)
