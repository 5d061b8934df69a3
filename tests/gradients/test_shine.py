"""SHINE: exact where the forward has seen the whole Jacobian, nearer than one plain step elsewhere, refused where nothing was seen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import torchimplicit as ti

D = torch.float64


def affine(z: Tensor, A: Tensor, b: Tensor) -> Tensor:
    return z @ A.mT + b


def problem(n: int, size: float) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(n)
    A = torch.randn(n, n, generator=rng, dtype=D)
    A = size * A / torch.linalg.matrix_norm(A, 2)
    return A, torch.randn(3, n, generator=rng, dtype=D), torch.randn(3, n, generator=rng, dtype=D)


def gradient(adjoint: object, solver: object, A: Tensor, b: Tensor, c: Tensor) -> Tensor:
    b = b.clone().requires_grad_()
    z, info = ti.fixed_point(
        affine, torch.zeros_like(b), (A, b), batch_ndim=1, solver=solver, adjoint=adjoint, rtol=1e-12
    )
    assert info.converged.all()
    z.backward(c)
    assert b.grad is not None
    return b.grad


def test_an_equation_in_one_unknown_is_seen_whole() -> None:
    """Broyden's method is the secant's there, whose slope of an affine function is exact: 1 / (1 − a)."""
    a, b, c = torch.tensor([[0.7]], dtype=D), torch.ones(3, 1, dtype=D), torch.ones(3, 1, dtype=D)
    for solver in ("broyden", ti.solvers.Anderson(period=1)):
        found = gradient(ti.SHINE(), solver, a, b, c)
        torch.testing.assert_close(found, torch.full_like(b, 1 / 0.3), rtol=1e-6, atol=0)


@pytest.mark.parametrize("solver", ["broyden", "anderson"])
def test_it_is_nearer_than_one_plain_step(solver: str) -> None:
    A, b, c = problem(6, 0.9)
    exact = torch.linalg.solve((torch.eye(6, dtype=D) - A).mT, c.mT).mT  # of each row, by the formula

    def error(adjoint: object) -> float:
        return float((gradient(adjoint, solver, A, b, c) - exact).norm() / exact.norm())

    assert error(ti.Implicit()) < 1e-9
    assert error(ti.SHINE()) < 0.7 * error(ti.OneStep())


@pytest.mark.parametrize("solver", ["broyden", "anderson"])
def test_rows_are_on_their_own_and_the_backward_tells_one_product(solver: str) -> None:
    A, b, c = problem(5, 0.8)
    together = gradient(ti.SHINE(), solver, A, b, c)
    alone = torch.cat([gradient(ti.SHINE(), solver, A, row[None], v[None]) for row, v in zip(b, c, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    b = b.requires_grad_()
    z, info = ti.fixed_point(affine, torch.zeros_like(b), (A, b), batch_ndim=1, solver=solver, adjoint=ti.SHINE())
    z.sum().backward()
    assert info.adjoint.products == 1
    assert info.adjoint.residual.isnan().all()


def test_plain_steps_leave_the_identity() -> None:
    """So fast a contraction that Anderson's method never mixes."""
    A, b, c = problem(4, 0.01)
    solver = ti.solvers.Anderson(plain_below=0.5)
    torch.testing.assert_close(gradient(ti.SHINE(), solver, A, b, c), gradient(ti.OneStep(), solver, A, b, c))


def test_what_leaves_nothing_is_refused() -> None:
    with pytest.raises(TypeError, match="broyden"):
        ti.root(lambda z: z**3 - 2, torch.ones(1, dtype=D), adjoint=ti.SHINE())
    with pytest.raises(RuntimeError, match="transforms"):
        torch.vmap(
            lambda b: ti.fixed_point(lambda z: 0.5 * z.sin() + b, b, solver="broyden", adjoint=ti.SHINE()).value
        )(torch.ones(3, dtype=D))
