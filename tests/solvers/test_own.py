"""Solvers of the user's own: any object with init, step, max_steps and patience, and whatever else it has to tell."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti

D = torch.float64
COSINE = 0.7390851332151607


def step(equations: Any, z: Tensor, r: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
    return z - r, equations.residual(z - r), state


class Counting:
    max_steps, patience = 200, 20

    def __init__(self) -> None:
        self.calls = 0

    def init(self, equations: Any, z: Tensor) -> tuple[Tensor, None]:
        return equations.residual(z), None

    def step(self, equations: Any, z: Tensor, r: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        self.calls += 1
        return step(equations, z, r, state)


@dataclass(frozen=True)
class Slotted:
    __slots__ = ()
    max_steps = 200
    patience = 20

    def init(self, equations: Any, z: Tensor) -> tuple[Tensor, None]:
        return equations.residual(z), None

    def step(self, equations: Any, z: Tensor, r: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        return step(equations, z, r, state)


class Proxy:
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.inner, name)


NAMESPACE = SimpleNamespace(
    init=lambda equations, z: (equations.residual(z), None), step=step, max_steps=200, patience=20
)


@pytest.mark.parametrize("solver", [Counting(), Slotted(), Proxy(ti.solvers.Picard()), NAMESPACE])
def test_any_object_that_can_be_asked_for_steps_is_a_solver(solver: Any) -> None:
    x = torch.tensor(0.0, dtype=D, requires_grad=True)
    z, info = ti.fixed_point(lambda z, x: torch.cos(z + x), torch.zeros((), dtype=D), (x,), solver=solver)
    assert info.converged
    torch.testing.assert_close(z.detach(), torch.tensor(COSINE, dtype=D), rtol=1e-7, atol=0)
    s = float(torch.sin(z.detach()))
    torch.testing.assert_close(torch.autograd.grad(z, x)[0], torch.tensor(-s / (1 + s), dtype=D), rtol=1e-6, atol=0)


def test_it_is_asked_itself_and_no_copy_of_it() -> None:
    solver = Counting()
    _, info = ti.fixed_point(torch.cos, torch.zeros((), dtype=D), solver=solver)
    assert solver.calls == info.steps


def test_what_it_tells_may_be_set_on_the_object() -> None:
    solver, asked = Counting(), []

    def estimate(z: Tensor, r: Tensor, state: Any) -> Any:
        asked.append(r)
        return ti.solvers.Estimate(r)

    solver.estimate = estimate  # type: ignore[attr-defined]
    assert ti.fixed_point(torch.cos, torch.zeros((), dtype=D), solver=solver)[1].converged
    assert asked


def test_what_a_proxy_tells_of_its_steps_is_heard() -> None:
    solver = Proxy(ti.solvers.Bisection(0.0, 1.0))
    with pytest.raises(TypeError, match="no derivative"):
        ti.root(lambda z: z - 0.3, torch.zeros((), dtype=D), solver=solver, adjoint=ti.Unrolled())


def test_one_of_several_in_turn_is_named_and_pickled() -> None:
    several = ti.solvers.Polyalgorithm((Counting(), ti.solvers.Newton()))
    _, info = ti.fixed_point(torch.cos, torch.zeros((), dtype=D), solver=several)
    assert info.tried == ("Counting",)
    assert len(pickle.loads(pickle.dumps(several)).stages) == 2
    copy.deepcopy(several)


def test_a_misspelt_flag_is_an_error() -> None:
    with pytest.raises(TypeError, match="Did you mean rowwise"):
        type("Misspelt", (ti.solvers.Method,), {"rowise": True})
