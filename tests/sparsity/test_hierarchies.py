"""Algebraic multigrid in the place of factors."""

from __future__ import annotations

import pytest
import torch

import torchimplicit as ti
from tests.sparsity.bratu import bratu, by_hand, rates, start
from torchimplicit.linear import Memory


def test_one_hierarchy_serves_all_steps_and_the_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the first system has cost many steps without it."""
    pytest.importorskip("pyamg")
    monkeypatch.setattr("torchimplicit.linear.memory.WIDE", 1)  # as if factors were large
    m, memory = 48, Memory()
    lam = rates(m)
    solver = ti.solvers.NewtonKrylov(ti.linear.Large(long_trial=35))
    u, info = ti.root(bratu, start(m), (lam,), solver=solver, sparsity=memory, rtol=1e-10, on_failure="raise")
    (found,) = torch.autograd.grad(u.sum(), lam)
    assert memory.setups == 1
    assert info.adjoint.steps <= 20
    value, gradient = by_hand(lam)
    torch.testing.assert_close(u.detach(), value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found, gradient, rtol=1e-8, atol=1e-12)
