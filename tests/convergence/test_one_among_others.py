"""One number beside others: each is judged by itself, and none hides among many."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import torchimplicit as ti

from .outcomes import D, S, error, outcome, right


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("solver", ["auto", "picard", "anderson", "broyden", "newton", "newton_krylov"])
def test_each_leaf_of_a_tree_is_judged_by_itself(solver: str, dtype: torch.dtype) -> None:
    x = torch.tensor(0.03, dtype=dtype)
    start = {"p": torch.tensor(9e4, dtype=dtype), "x": torch.tensor(0.0, dtype=dtype)}

    def f(z: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        return {"p": 0.5 * z["p"] + 5e4, "x": 0.9 * z["x"] + x}

    result = outcome(ti.fixed_point, f, start, x, solver=solver)
    good = right(result.z["x"], torch.tensor(0.3, dtype=D)) and right(result.z["p"], torch.tensor(1e5, dtype=D))
    assert good or not result.found, (result.z, result.info.status)
    if solver in ("auto", "newton", "newton_krylov"):
        assert result.silent, result.words
        assert float(result.gradient) == pytest.approx(10, rel=1e-3)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("solver", ["auto", "newton_cg", "bfgs", "lbfgs", "nonlinear_cg"])
def test_each_leaf_of_a_minimum_is_judged_by_itself(solver: str, dtype: torch.dtype) -> None:
    x = torch.tensor(0.3, dtype=dtype)
    start = {"p": torch.tensor(9e4, dtype=dtype), "x": torch.tensor(2.0, dtype=dtype)}

    def phi(z: dict[str, Tensor], x: Tensor) -> Tensor:
        return (z["p"] / 1e5 - 1) ** 2 + (z["x"] - x) ** 2 / 2 + (z["x"] - x) ** 4

    result = outcome(ti.minimize, phi, start, x, solver=solver)
    good = right(result.z["x"], torch.tensor(0.3, dtype=D)) and right(result.z["p"], torch.tensor(1e5, dtype=D))
    assert good or not result.found, (result.z, result.info.status)
    if solver == "auto":
        assert result.silent, result.words


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("solver", ["auto", "picard", "anderson", "broyden", "newton_krylov"])
@pytest.mark.parametrize("slowness", [0.9, 0.99])
def test_one_slow_number_does_not_hide_among_many(solver: str, slowness: float, dtype: torch.dtype) -> None:
    n = 1024
    rates = torch.full((n,), 0.1, dtype=dtype)
    rates[417] = slowness
    x = (1 - rates.double()).to(dtype)
    truth = x.double() / (1 - rates.double())
    result = outcome(ti.fixed_point, lambda z, x: rates * z + x, torch.zeros(n, dtype=dtype), x, solver=solver)
    assert result.found <= right(result.z, truth), (error(result.z, truth), result.info.status)
    root = outcome(ti.root, lambda z, x: z - rates * z - x, torch.zeros(n, dtype=dtype), x, solver=solver)
    assert root.found <= right(root.z, truth), (error(root.z, truth), root.info.status)
    if solver == "auto":
        assert result.silent
        assert root.silent


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("solver", ["auto", "lbfgs", "nonlinear_cg", "newton_cg"])
def test_one_flat_number_of_a_minimum_does_not_hide_among_many(solver: str, dtype: torch.dtype) -> None:
    n = 1024
    weights = torch.ones(n, dtype=dtype)
    weights[417] = 1e-3
    truth = 1 + torch.arange(n, dtype=dtype) / n

    def phi(z: Tensor) -> Tensor:
        return (weights * ((z - truth) ** 2 + 0.1 * (z - truth) ** 4)).sum()

    result = outcome(ti.minimize, phi, torch.zeros(n, dtype=dtype), solver=solver)
    assert result.found <= right(result.z, truth), (error(result.z, truth), result.info.status)
    if solver == "auto":
        assert result.silent, result.words
