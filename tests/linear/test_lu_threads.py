"""Batches of larger matrices are factorised correctly on several threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import torchimplicit as ti
from torchimplicit.linear import LU, Dense
from torchimplicit.private.dynamo import AVAILABLE


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("n", [128, 129, 200])
def test_a_batch_of_matrices_larger_than_lapack_threads_at_is_solved(two_threads: None, n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(5, n, n, dtype=torch.float64, generator=generator)
    b = torch.randn(5, n, dtype=torch.float64, generator=generator)
    state = LU().factorize(Dense(A))
    for adjoint, matrix in ((False, A), (True, A.mT)):
        x = state.solve(b, adjoint)
        residual = (matrix @ x.unsqueeze(-1)).squeeze(-1) - b
        assert residual.abs().max() < 1e-9 * x.abs().max()


def test_the_batch_may_be_that_of_a_vmap(two_threads: None) -> None:
    A = torch.randn(3, 160, 160, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    b = torch.ones(160, dtype=torch.float64)
    x = torch.vmap(lambda A: LU().factorize(Dense(A)).solve(b))(A)
    assert torch.allclose((A @ x.unsqueeze(-1)).squeeze(-1), b.expand(3, 160), atol=1e-8)


@pytest.mark.slow
@pytest.mark.skipif(not AVAILABLE, reason="this PyTorch cannot have a loop around a function in a graph")
def test_or_of_a_graph(two_threads: None) -> None:
    generator = torch.Generator().manual_seed(2)
    A = torch.randn(5, 160, 160, dtype=torch.float64, generator=generator) + 30 * torch.eye(160, dtype=torch.float64)
    b = torch.randn(5, 160, dtype=torch.float64, generator=generator, requires_grad=True)
    torch._dynamo.reset()
    x = torch.compile(lambda A, b: ti.linear_solve(A, b)[0], fullgraph=True, backend="aot_eager")(A, b)
    assert torch.allclose((A @ x.unsqueeze(-1)).squeeze(-1), b, atol=1e-10)
    (grad,) = torch.autograd.grad(x.sum(), b)
    assert torch.allclose((A.mT @ grad.unsqueeze(-1)).squeeze(-1), torch.ones_like(grad), atol=1e-10)
