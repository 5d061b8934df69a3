"""Small asymmetric problems of every class, as functions of tensors that need gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import torchimplicit as ti

TIGHT = {"rtol": 1e-13, "atol": 1e-13}


class Case(NamedTuple):
    """f(*inputs) -> z*; every input needs a gradient."""

    f: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def well(n: int, seed: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    """An asymmetric, well-conditioned matrix."""
    return randn(n, n, seed=seed, dtype=dtype) / 2 + 3 * torch.eye(n, dtype=dtype)


def root(W: Tensor, x: Tensor) -> Tensor:
    return ti.root(lambda z, W, x: z + (W @ z).tanh() / 2 + z**3 / 9 - x, torch.zeros_like(x), (W, x), **TIGHT).value


def root_closure(W: Tensor, x: Tensor) -> Tensor:
    return ti.root(lambda z: z + (W @ z).tanh() / 2 + z**3 / 9 - x, torch.zeros_like(x), **TIGHT).value


def root_non_leaf(W: Tensor, x: Tensor) -> Tensor:
    V, y = W.sin(), x.exp()
    return ti.root(lambda z: z + (V @ z).tanh() / 2 - y, torch.zeros_like(x), **TIGHT).value


def fixed_point(W: Tensor, x: Tensor) -> Tensor:
    return ti.fixed_point(lambda z: torch.tanh(W @ z / 4 + x), torch.zeros_like(x), **TIGHT).value


def fixed_point_batch(W: Tensor, x: Tensor) -> Tensor:
    x = torch.stack([x, 2 * x.sin()])
    return ti.fixed_point(lambda z: torch.tanh(z @ W.T / 4 + x), torch.zeros_like(x), batch_ndim=1, **TIGHT).value


def minimum(W: Tensor, x: Tensor) -> Tensor:
    def phi(z: Tensor) -> Tensor:
        return (z - x).square().sum() + (W @ z).cosh().sum() / 9 + z[0] * z[1] / 5

    return ti.minimize(phi, torch.zeros_like(x), **TIGHT).value


def fit(W: Tensor, x: Tensor) -> Tensor:
    y = torch.cat([x, x.cos()])
    start = torch.tensor([2.0, 0.1], dtype=torch.float64)
    t = torch.linspace(0, 1, len(y), dtype=torch.float64)
    z = ti.least_squares(
        lambda z: z[0] * torch.exp(-z[1] * t) + z[1] ** 2 + W[0, 1] * z[0] - 2 - 0.1 * y, start, **TIGHT
    )
    return z.value


def linear_dense(W: Tensor, x: Tensor) -> Tensor:
    return ti.linear_solve(W, x, rtol=1e-13).value


def linear_broadcast(W: Tensor, x: Tensor) -> Tensor:
    return ti.linear_solve(W, torch.stack([x, x**2]), rtol=1e-13).value


def linear_callable(W: Tensor, x: Tensor) -> Tensor:
    return ti.linear_solve(lambda z: W @ z + 2 * z, x, rtol=1e-13).value


def linear_iterative(W: Tensor, x: Tensor) -> Tensor:
    return ti.linear_solve(W, x, solver=ti.linear.GMRES(), rtol=1e-13).value


def black_box(W: Tensor, x: Tensor) -> Tensor:
    @ti.implicit(lambda z, W, x: z + (W @ z).tanh() / 2 - x, rtol=1e-9, vmap="sequential")
    def solve(W: Tensor, x: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        for _ in range(60):
            s = 1 - (W @ z).tanh() ** 2
            J = torch.eye(len(x), dtype=x.dtype) + s[:, None] * W / 2
            z = z - torch.linalg.solve(J, z + (W @ z).tanh() / 2 - x)
        return z

    result: Tensor = solve(W, x)
    return result


class Cell(torch.nn.Module):
    """A cell whose parameters are what is differentiated."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.W = torch.nn.Parameter(torch.zeros(n, n))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ self.W.T / 5 + x)


def module(W: Tensor, x: Tensor) -> Tensor:
    layer = ti.nn.FixedPoint(Cell(len(x)), batch_ndim=0, **TIGHT)
    z: Tensor = torch.func.functional_call(layer, {"cell.W": W}, (x,))
    return z


def argmin_module(W: Tensor, x: Tensor) -> Tensor:
    class Energy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W = torch.nn.Parameter(torch.zeros(len(x), len(x)))

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return (z - x).square().sum() + (self.W @ z).cosh().sum() / 50

    z: Tensor = torch.func.functional_call(ti.nn.ArgMin(Energy(), batch_ndim=0, **TIGHT), {"module.W": W}, (x,))
    return z


FUNCTIONS = [
    root,
    root_closure,
    root_non_leaf,
    fixed_point,
    fixed_point_batch,
    minimum,
    fit,
    linear_dense,
    linear_broadcast,
    linear_callable,
    linear_iterative,
    black_box,
    module,
    argmin_module,
]


def inputs(n: int = 3) -> tuple[Tensor, Tensor]:
    return well(n).requires_grad_(), (randn(n, seed=5) / 2).requires_grad_()
