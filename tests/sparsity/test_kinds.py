"""Minima, fits and fixed points whose Jacobians are sparse: gradients against dense linear algebra, and how the backward was solved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti

N = 400


def energy(u: Tensor, c: Tensor) -> Tensor:
    """Of a chain of springs that harden, held at its ends."""
    stretched = torch.nn.functional.pad(u, (1, 1)).diff()
    return 10 * stretched.square().sum() + stretched.pow(4).sum() + (u.pow(4) / 4 - c * u).sum()


def of_energy(u: Tensor, c: Tensor) -> Tensor:
    return torch.func.grad(energy)(u, c)


def misfit(u: Tensor, c: Tensor) -> Tensor:
    return torch.cat([3 * u.diff(), u.exp() - c])


def of_misfit(u: Tensor, c: Tensor) -> Tensor:
    return torch.func.grad(lambda u: misfit(u, c).square().sum() / 2)(u)


def neighbours(u: Tensor, c: Tensor) -> Tensor:
    """A map that is no contraction."""
    return 2 * torch.tanh(u.roll(1) - u) + c


def of_neighbours(u: Tensor, c: Tensor) -> Tensor:
    return u - neighbours(u, c)


KINDS = {
    "minimum": (ti.minimize, energy, of_energy),
    "fit": (ti.least_squares, misfit, of_misfit),
    "fixed point": (ti.fixed_point, neighbours, of_neighbours),
}


@pytest.mark.parametrize("name", KINDS)
def test_gradients_are_those_by_dense_linear_algebra(name: str) -> None:
    solve, f, condition = KINDS[name]
    c = (2 + torch.sin(torch.arange(N, dtype=torch.float64))).requires_grad_()
    options: dict[str, Any] = {"rtol": 1e-10, "sparsity": "detect"}
    z, info = solve(f, torch.zeros(N, dtype=torch.float64), (c,), **options)
    weights = torch.linspace(-1, 1, N, dtype=torch.float64)
    (z * weights).sum().backward()
    at = z.detach(), c.detach()
    assert float(condition(*at).abs().max()) < 1e-8
    J, in_c = (torch.func.jacrev(condition, i)(*at) for i in (0, 1))
    torch.testing.assert_close(c.grad, -in_c.T @ torch.linalg.solve(J.T, weights), rtol=1e-7, atol=1e-9)
    method = "GMRES" if name == "fixed point" else "CG"
    assert info.adjoint.linear.startswith(f"{method}, preconditioned by ")


def test_a_minimum_has_a_sparse_backward_by_default() -> None:
    c = (2 + torch.sin(torch.arange(N, dtype=torch.float64))).requires_grad_()
    z, info = ti.minimize(energy, torch.zeros(N, dtype=torch.float64), (c,), rtol=1e-10)
    z.sum().backward()
    assert "band LDLᵀ" in info.linear
    assert "band LDLᵀ" in info.adjoint.linear
    plain = ti.minimize(energy, torch.zeros(N, dtype=torch.float64), (c,), rtol=1e-10, sparsity="off").info
    assert info.products < plain.products / 2
    assert info.adjoint.products < 50


def test_a_saddle_point_is_left_whatever_is_known_of_hessians() -> None:
    """Of a chain of double wells, from the maximum between them: there the Hessian is indefinite."""
    u0 = 1e-3 * torch.sin(torch.arange(N, dtype=torch.float64))

    def wells(u: Tensor) -> Tensor:
        return (u.square() - 1).square().sum() + 0.3 * u.diff().square().sum()

    z, info = ti.minimize(wells, u0, rtol=1e-9, sparsity="detect")
    H = torch.func.hessian(wells)(z)
    assert info.converged
    assert float(torch.linalg.eigvalsh(H).min()) > 0
    assert float(wells(z)) < float(wells(u0))
