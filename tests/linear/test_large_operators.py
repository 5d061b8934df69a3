"""Nothing of size n² is allocated by an operator with structure, its solve, or the gradient of that: traced at n = 50,000."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.linear import (
    BlockDiagonal,
    BlockTridiagonal,
    Dense,
    Diagonal,
    Kronecker,
    LinearOperator,
    LowRankUpdate,
    MatrixFree,
    Pattern,
    Sparse,
    tridiagonal,
)
from torchimplicit.private import TorchDispatchMode, pytree

n = 50_000


class Largest(TorchDispatchMode):
    """The most entries that a tensor has had."""

    entries = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().nbytes() // 8 for leaf in pytree.tree_leaves(result) if _is_strided(leaf)]
        self.entries = max(self.entries, *sizes, 0)
        return result


def _is_strided(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.layout == torch.strided


def ring() -> Pattern:
    """Each point with the next and with itself, in a circle."""
    i = torch.arange(n)
    columns = torch.stack([i, (i + 1) % n], -1)
    return Pattern(i.repeat_interleave(2), columns.flatten(), n, n)


KINDS: dict[str, Callable[[Tensor], LinearOperator]] = {
    "diagonal": lambda d: Diagonal(d),
    "tridiagonal": lambda d: tridiagonal(-d[1:], 3 * d, -d[:-1]),
    "sparse": lambda d: Sparse(torch.stack([3 * d, -d], -1).flatten(), ring()),
    "sum": lambda d: Diagonal(d) + tridiagonal(-d[1:], 3 * d, -d[:-1]),
    "product": lambda d: Diagonal(d) @ tridiagonal(-d[1:], 3 * d, -d[:-1]),
    "Kronecker": lambda d: Kronecker(Diagonal(d[:250]), Dense(torch.diag(d[:200]) + 0.1)),
    "block diagonal": lambda d: BlockDiagonal([Dense(torch.diag(d[:100])), Diagonal(d[100:])]),
    "low rank": lambda d: LowRankUpdate(Diagonal(d), d.unsqueeze(-1), torch.ones(n, 1).double() / n),
    "recurrence": lambda d: BlockTridiagonal(_blocks(-0.5 * d)[1:], _blocks(d)),
    "products, in a known band": lambda d: MatrixFree(
        lambda x: 3 * d * x - torch.nn.functional.pad(x[1:], (0, 1)), n=n, dtype=d.dtype, lower=0, upper=1
    ),
    "products": lambda d: MatrixFree(lambda x: 3 * d * x - torch.roll(x, 1), n=n, dtype=d.dtype),
}


def _blocks(d: Tensor) -> Tensor:
    """Blocks 5 × 5 with these on their diagonals, and something beside them."""
    blocks = torch.diag_embed(d.reshape(-1, 5))
    return blocks + 0.1 * torch.roll(blocks, 1, -1)


@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_need_memory_in_proportion_to_n(kind: str) -> None:
    torch.manual_seed(0)
    d = (1 + torch.rand(n).double()).requires_grad_()
    b = torch.randn(n).double().requires_grad_()
    with Largest() as seen:
        solution = ti.linear_solve(KINDS[kind](d), b, rtol=1e-10)
        grads = torch.autograd.grad(solution.value.square().sum(), (d, b))
    assert solution.info.converged
    assert solution.info.adjoint.converged
    assert seen.entries <= 150 * n
    # Along d itself the solution scales like 1/d: A(s d) = s A(d) for those that are linear in d.
    if kind in ("diagonal", "tridiagonal", "sparse", "sum", "recurrence"):
        torch.testing.assert_close((grads[0] * d).sum(), -2 * solution.value.square().sum(), rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    "solver",
    [ti.linear.SparseLU(), ti.linear.SparseLU("umfpack"), ti.linear.SparseLU("klu"), ti.linear.SparseCholesky()],
)
def test_so_do_factors_that_are_asked_for(solver: Any) -> None:
    d = (1 + torch.rand(n).double()).requires_grad_()
    b = torch.randn(n).double().requires_grad_()
    i = torch.arange(n)
    rows, columns = torch.cat([i, i[1:], i[:-1]]), torch.cat([i, i[:-1], i[1:]])
    order = (rows * n + columns).argsort()
    values = torch.cat([3 * d, -d[1:] * d[:-1] / 4, -d[1:] * d[:-1] / 4])[order]
    with Largest() as seen:
        operator = Sparse(values, Pattern(rows[order], columns[order], n, n))
        solution = ti.linear_solve(operator, b, solver=solver, rtol=1e-10)
        grads = torch.autograd.grad(solution.value.square().sum(), (d, b))
    assert solution.info.converged
    assert solution.info.adjoint.converged
    assert seen.entries <= 150 * n
    # The solution is linear in b.
    torch.testing.assert_close((grads[1] * b).sum(), 2 * solution.value.square().sum(), rtol=1e-8, atol=0)


def test_so_does_a_function_that_multiplies_by_a_sparse_tensor() -> None:
    d = 1 + torch.rand(n).double()
    A = ring().matrix(torch.stack([0.2 * d, -0.2 * d], -1).flatten())
    x = torch.randn(n).double().requires_grad_()
    with Largest() as seen:
        solution = ti.fixed_point(lambda z: A @ z + x, torch.zeros(n).double(), rtol=1e-10)
        (gradient,) = torch.autograd.grad(solution.value.sum(), x)
    assert solution.info.adjoint.converged
    assert seen.entries <= 150 * n
    torch.testing.assert_close((gradient * x).sum(), solution.value.sum(), rtol=1e-7, atol=0)
