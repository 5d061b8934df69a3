"""Pseudo-transient continuation goes where the flow dz/dt = −g goes, past local minima of the norm of g."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.solvers import PseudoTransient

D = torch.float64


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=D)


def test_a_cubic_on_which_newton_cycles() -> None:
    z = ti.root(lambda z: z**3 - 2 * z + 2, torch.tensor(0.0, dtype=D), solver="pseudo_transient").value
    assert abs(z + 1.7692923542386314) < 1e-9


def test_a_local_minimum_of_the_norm_is_passed() -> None:
    def g(z: Tensor) -> Tensor:  # Freudenstein and Roth
        a, b = z.unbind(-1)
        return torch.stack([a - b**3 + 5 * b**2 - 2 * b - 13, a + b**3 + b**2 - 14 * b - 29], -1)

    assert not ti.root(g, tensor(0.5, -2), solver="dogleg", on_failure="ignore").info.converged
    z = ti.root(g, tensor(0.5, -2), solver="pseudo_transient").value
    assert torch.allclose(z, tensor(5, 4))


def test_the_sign_of_g_is_the_direction_of_time() -> None:
    z0 = torch.tensor(0.0, dtype=D)
    z, info = ti.root(lambda z: z**3 - 2 * z + 2, z0, solver="pseudo_transient")
    w, its = ti.root(lambda z: -(z**3) + 2 * z - 2, z0, solver=PseudoTransient(first=-10.0))
    assert torch.equal(z, w)
    assert info.steps == its.steps


def test_the_last_steps_are_those_of_newton() -> None:
    info = ti.root(lambda z: z.exp() + z - 3, tensor(1.0), solver="pseudo_transient", rtol=1e-15, trace=True).info
    assert info.trace is not None
    r = info.trace[(info.trace > 1e-9) & (info.trace < 1e-2)].flatten()
    assert len(r) > 1
    assert (r[1:] < 20 * r[:-1] ** 1.5).all()  # superlinear


def test_overflow_and_errors_shorten_the_step() -> None:
    def g(z: Tensor) -> Tensor:
        if bool((z < -50).any()):
            raise OverflowError("too far")
        return 1 - torch.exp(-z)

    z = ti.root(g, tensor(-30.0), solver=PseudoTransient(first=1e9), rtol=0.0, atol=1e-6).value
    assert torch.allclose(z, tensor(0.0), atol=1e-4)


@pytest.mark.parametrize("first", [0, float("nan"), "1"])
def test_the_first_step_is_a_number(first: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        PseudoTransient(first=first)
