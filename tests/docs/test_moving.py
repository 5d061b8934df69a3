"""The pages "Moving from": each right column's gradient is that of finite differences, and of the left column where that runs."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

import torchimplicit as ti

CALLS = Path(__file__).parent.parent.parent / "docs" / "moving" / "calls"
NAMES = sorted(path.name.removesuffix("_ours.py") for path in CALLS.glob("*_ours.py"))
PACKAGES = {"jaxopt_custom_root": "jaxopt", "pytorch_minimize": "torchmin", "hook": "torch"}
# What a left column misses by: its tolerances mean something else, as its page says.
OFF = {"optimistix": 1e-7, "jaxopt": 1e-7, "pytorch_minimize": 1e-5, "qpth": 1e-6, "cvxpylayers": 1e-6}


def column(name: str, side: str) -> dict[str, Any]:
    return runpy.run_path(str(CALLS / f"{name}_{side}.py"))


def value_and_gradient(names: dict[str, Any]) -> tuple[float, torch.Tensor | None]:
    """Of the column's loss at its x; None if it has no gradient."""
    if not isinstance(names["x"], torch.Tensor):
        import jax
        import numpy as np

        value, gradient = jax.value_and_grad(names["loss"])(names["x"])
        return float(value), torch.from_numpy(np.array(gradient))
    x = names["x"].clone().requires_grad_()
    value = names["loss"](x)
    return value.item(), torch.autograd.grad(value, x)[0] if value.requires_grad else None


def difference(names: dict[str, Any], d: torch.Tensor, h: float = 1e-4) -> torch.Tensor:
    """Of the loss, along d."""
    x, loss = names["x"], names["loss"]
    return (loss(x + h * d) - loss(x - h * d)) / (2 * h)


def direction(x: torch.Tensor) -> torch.Tensor:
    return torch.linspace(0.5, 1.5, x.numel(), dtype=x.dtype).view_as(x)


@pytest.mark.parametrize("name", NAMES)
def test_the_right_column_has_the_gradient_of_finite_differences(name: str) -> None:
    ours = column(name, "ours")
    _, gradient = value_and_gradient(ours)
    d = direction(ours["x"])
    torch.testing.assert_close((gradient * d).sum(), difference(ours, d), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_the_left_column_gives_the_same(name: str) -> None:
    pytest.importorskip(PACKAGES.get(name, name), exc_type=ImportError)
    ours, theirs = column(name, "ours"), column(name, "theirs")
    if name == "theseus":
        ours["options"]["adjoint"] = ti.GaussNewton()
    (value, gradient), (expected, derivative) = value_and_gradient(ours), value_and_gradient(theirs)
    assert value == pytest.approx(expected, abs=OFF.get(name, 1e-8))
    if derivative is not None:
        torch.testing.assert_close(gradient, derivative, rtol=0, atol=OFF.get(name, 1e-8))


def test_a_gradient_without_second_derivatives_of_the_residuals_is_another_one() -> None:
    ours = column("theseus", "ours")
    _, exact = value_and_gradient(ours)
    ours["options"]["adjoint"] = ti.GaussNewton()
    _, approximate = value_and_gradient(ours)
    assert 1e-3 < (exact - approximate).norm() / exact.norm() < 1e-2  # "in the third digit"


def test_the_default_needs_fewer_steps_than_gradient_descent() -> None:
    ours = column("torchopt", "ours")
    _, info = ti.minimize(ours["inner"], torch.zeros_like(ours["x"]), (ours["x"],))
    assert info.converged
    assert info.steps < 10  # "a handful"


def test_the_hook_is_wrong_in_the_second_order() -> None:
    ours, theirs = column("hook", "ours"), column("hook", "theirs")
    d = direction(ours["x"])

    def slope(names: dict[str, Any], x: torch.Tensor, **options: Any) -> torch.Tensor:
        """Of the loss along d, as autograd has it."""
        return (torch.autograd.grad(names["loss"](x), x, **options)[0] * d).sum()

    def curvature(names: dict[str, Any]) -> torch.Tensor:
        x = names["x"].clone().requires_grad_()
        return (torch.autograd.grad(slope(names, x, create_graph=True), x)[0] * d).sum()

    expected = difference({"x": ours["x"], "loss": lambda x: slope(ours, x.requires_grad_())}, d)
    torch.testing.assert_close(curvature(ours), expected, rtol=1e-5, atol=1e-6)
    assert (curvature(theirs) - expected).abs() > 0.1 * expected.abs()
