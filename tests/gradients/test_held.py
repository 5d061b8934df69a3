"""No unit plays a part in who is held by a bound."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import torchimplicit as ti
from torchimplicit.interop import SciPy

from .test_bounds import D, T

POWERS = {torch.float64: 300, torch.float32: 40}
TARGET = [1.0, -2.0, 0.5, 4.0]


def in_a_unit(c: float, d: float, dtype: torch.dtype, **options: Any) -> tuple[ti.Solution, Tensor, Tensor]:
    """The minimum of c Σ ((z − x)² + (z − x)⁴) + d, each free unknown of which is x, and the derivatives of its sum in x and bounds.

    The third unknown is pressed on its lower bound, the fourth on its upper one.
    """
    x, size = torch.tensor(TARGET, dtype=dtype, requires_grad=True), 1e3
    limits = torch.tensor([[-size, -size, 0.8, -size], [size, size, size, 3.0]], dtype=dtype, requires_grad=True)
    found = ti.minimize(
        lambda z, x: c * ((z - x) ** 2 + (z - x) ** 4).sum() + d,
        torch.zeros(4, dtype=dtype),
        (x,),
        bounds=tuple(limits.unbind()),
        **options,
    )
    return found, *torch.autograd.grad(found.value.sum(), (x, limits))


@pytest.mark.parametrize("examples", [8, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", POWERS)
def test_no_unit_of_the_objective_plays_a_part(dtype: torch.dtype, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(power=st.integers(-POWERS[dtype], POWERS[dtype]), shift=st.sampled_from([0.0, 1.0, -3e3]))
    def check(power: int, shift: float) -> None:
        c = 2.0**power
        (z, info), in_x, in_limits = in_a_unit(c, shift * c, dtype)
        assert info.converged
        assert info.adjoint.converged
        rtol = 10 * torch.finfo(dtype).eps ** 0.5
        torch.testing.assert_close(z, torch.tensor([1.0, -2.0, 0.8, 3.0], dtype=dtype), rtol=rtol, atol=0)
        assert z[2:].tolist() == torch.tensor([0.8, 3.0], dtype=dtype).tolist()  # exactly
        torch.testing.assert_close(in_x, torch.tensor([1.0, 1, 0, 0], dtype=dtype), rtol=rtol, atol=rtol)
        torch.testing.assert_close(
            in_limits, torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 1]], dtype=dtype), rtol=rtol, atol=rtol
        )

    check()


@pytest.mark.parametrize("examples", [8, pytest.param(25, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", POWERS)
def test_no_unit_of_the_residuals_of_a_fit_plays_a_part(dtype: torch.dtype, examples: int) -> None:
    """z₀ e^(−z₁ t) with the rate held at 1: then z₀ is linear in y, with the weights e⁻ᵗ / Σ e⁻²ᵗ."""
    t = T.to(dtype)
    weights = (-T).exp() / (-2 * T).exp().sum()

    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(power=st.integers(-POWERS[dtype] // 2, POWERS[dtype] // 2))
    def check(power: int) -> None:
        y = (3 * (-1.5 * T).exp()).to(dtype).requires_grad_()
        z, info = ti.least_squares(
            lambda z, y: 2.0**power * (z[0] * (-z[1] * t).exp() - y),
            torch.tensor([2.0, 0.5], dtype=dtype),
            (y,),
            bounds=(-1e3, torch.tensor([1e3, 1.0], dtype=dtype)),
        )
        assert info.converged
        rtol = 100 * torch.finfo(dtype).eps ** 0.5
        torch.testing.assert_close(z.double(), torch.stack([weights @ y.double(), T.new_ones(())]), rtol=rtol, atol=0)
        (gradient,) = torch.autograd.grad(z.sum(), y)
        torch.testing.assert_close(gradient.double(), weights, rtol=rtol, atol=rtol)

    check()


@pytest.mark.parametrize(
    "solver", ["newton", "newton_krylov", "broyden", "anderson", SciPy("trust-constr"), SciPy("SLSQP")]
)
def test_what_others_leave_next_to_its_bound_is_put_there(solver: Any) -> None:
    (z, info), in_x, in_limits = in_a_unit(0.1, 0.0, D, solver=solver, rtol=1e-6)
    assert info.converged
    assert z[2:].tolist() == [0.8, 3.0]
    torch.testing.assert_close(in_x, torch.tensor([1.0, 1, 0, 0], dtype=D), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(in_limits, torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 1]], dtype=D), rtol=1e-6, atol=1e-6)
