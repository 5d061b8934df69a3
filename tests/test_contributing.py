"""What CONTRIBUTING shows how to add is added, and solves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import torchimplicit as ti
from torchimplicit.layout import same_as_z
from torchimplicit.problems.pose import pose_and_solve

D = torch.float64
TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()


def examples() -> dict[str, Any]:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.S):
        own: dict[str, Any] = {}  # each block is a file of its own
        exec(block, own)
        names |= own
    return names


@pytest.fixture(scope="module")
def added() -> dict[str, Any]:
    return examples()


def test_a_solver(added: dict[str, Any]) -> None:
    x = torch.tensor([0.3, 0.6], dtype=D, requires_grad=True)
    solver = added["Damped"](damping=0.8)
    z, info = ti.fixed_point(
        lambda z, x: torch.cos(z) / 2 + x, torch.zeros(2, dtype=D), (x,), solver=solver, rtol=1e-12
    )
    assert info.converged.all()
    torch.testing.assert_close(z, torch.cos(z) / 2 + x, rtol=1e-11, atol=0)
    (grad,) = torch.autograd.grad(z.sum(), x)
    torch.testing.assert_close(grad, 1 / (1 + torch.sin(z.detach()) / 2), rtol=1e-9, atol=0)


def test_a_misspelt_answer_of_a_solver_is_an_error(added: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="Did you mean estimate"):
        type("Misspelt", (added["Damped"],), {"estimates": lambda self, z, r, state: None})


def test_a_solver_without_the_base_has_its_defaults() -> None:
    class Plain:
        max_steps, patience = 200, 20

        def init(self, equations: Any, z: Any) -> Any:
            return equations.residual(z), None

        def step(self, equations: Any, z: Any, r: Any, state: Any) -> Any:
            return z - r, equations.residual(z - r), state

    z, info = ti.fixed_point(torch.cos, torch.zeros((), dtype=D), solver=Plain())
    assert info.converged
    torch.testing.assert_close(z, torch.tensor(0.7390851332151607, dtype=D), rtol=1e-7, atol=0)


def test_a_linear_solver(added: dict[str, Any]) -> None:
    torch.manual_seed(0)
    A, b = torch.eye(6, dtype=D) + 0.1 * torch.randn(6, 6, dtype=D), torch.randn(6, dtype=D, requires_grad=True)
    z, info = ti.linear_solve(A, b, solver=added["MinimalResidual"](), rtol=1e-10, max_steps=200)
    assert info.converged
    torch.testing.assert_close(z, torch.linalg.solve(A, b), rtol=1e-8, atol=1e-9)
    (grad,) = torch.autograd.grad(z.sum(), b)
    torch.testing.assert_close(grad, torch.linalg.solve(A.T, torch.ones(6, dtype=D)), rtol=1e-6, atol=1e-8)


def test_a_kind_of_problem(added: dict[str, Any]) -> None:
    a = torch.tensor([1.0, 2.0, 4.0], dtype=D, requires_grad=True)
    z, info = added["balance"](lambda z, a: a * z, torch.zeros(3, dtype=D), (a,))
    assert info.converged
    closed = (1 / a) / (1 / a).sum()  # a z is the same everywhere, and the sum of z is 1
    torch.testing.assert_close(z, closed, rtol=1e-8, atol=0)
    (grad,) = torch.autograd.grad(z[0], a)
    (expected,) = torch.autograd.grad(closed[0], a)
    torch.testing.assert_close(grad, expected, rtol=1e-7, atol=1e-9)


def test_what_is_no_entry_point_is_not_silently_left_uncompiled(added: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"balance: compile=True has no effect.*entry_point"):
        pose_and_solve(added["Balance"](), torch.cos, torch.zeros(3), (), same_as_z, compile=True)
    with pytest.raises(TypeError, match=r"root: compile=1 has no effect.*True or False"):
        ti.root(torch.cos, torch.zeros(()), compile=1)
