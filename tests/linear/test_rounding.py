"""What only rounding keeps from solving a system is told from what does not solve it, whatever the units."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.linear import LU, Dense
from torchimplicit.linear.rounding import solved_to_rounding

D = torch.float64


def systems(seed: int, n: int = 6, spread: float = 8.0) -> tuple[Tensor, Tensor]:
    """Regular matrices whose rows and columns are in units up to 10^±spread, and right-hand sides."""
    generator = torch.Generator().manual_seed(seed)
    core = torch.randn(20, n, n, dtype=D, generator=generator) + 3 * torch.eye(n)
    rows, columns = (10 ** (spread * (2 * torch.rand(20, n, dtype=D, generator=generator) - 1)) for _ in range(2))
    return rows.unsqueeze(-1) * core * columns.unsqueeze(-2), torch.randn(20, n, dtype=D, generator=generator)


def exact(A: Tensor, b: Tensor) -> Tensor:
    """The solution of one system, in rational numbers."""
    n = len(b)
    rows = [[Fraction(a) for a in row] + [Fraction(v)] for row, v in zip(A.tolist(), b.tolist(), strict=True)]
    for k in range(n):
        pivot = next(i for i in range(k, n) if rows[i][k])
        rows[k], rows[pivot] = rows[pivot], rows[k]
        for i in range(n):
            if i != k:
                factor = rows[i][k] / rows[k][k]
                rows[i] = [p - factor * q for p, q in zip(rows[i], rows[k], strict=True)]
    return torch.tensor([float(rows[i][n] / rows[i][i]) for i in range(n)], dtype=D)


@pytest.mark.parametrize("seed", range(3))
def test_the_solution_to_rounding_is_accepted_where_its_residual_is_large(seed: int) -> None:
    A, b = systems(seed)
    x = torch.stack([exact(*system) for system in zip(A, b, strict=True)])
    residual = torch.linalg.vector_norm(b - (A @ x.unsqueeze(-1)).squeeze(-1), dim=-1) / torch.linalg.vector_norm(
        b, dim=-1
    )
    assert residual.max() > 1e-9  # some of them miss any tolerance
    assert solved_to_rounding(A, b, x).all()


@pytest.mark.parametrize("wrong_by", [1e-12, 1e-6, 1.0])
def test_a_solution_with_one_wrong_unknown_is_refused(wrong_by: float) -> None:
    """Though its normwise residual be small: the wrong unknown is that in the largest unit, which weighs least."""
    A, b = systems(5)
    x = LU().factorize(Dense(A)).solve(b)
    assert solved_to_rounding(A, b, x).all()
    for i in range(6):
        other = x.clone()
        other[:, i] *= 1 + wrong_by
        assert not solved_to_rounding(A, b, other).any()


def test_a_solution_that_rounding_leaves_no_digits_is_refused() -> None:
    """Hilbert's matrix: LU solves a system next to it, and the solution is wrong."""
    i = torch.arange(13, dtype=D)
    A = (1 / (1 + i + i.unsqueeze(-1))).unsqueeze(0)
    b = A.sum(-1)
    x = LU().factorize(Dense(A)).solve(b)
    assert (x - 1).abs().max() > 0.01
    assert not solved_to_rounding(A, b, x).any()
    small = A[:, :5, :5]
    assert solved_to_rounding(small, small.sum(-1), LU().factorize(Dense(small)).solve(small.sum(-1))).all()
    assert not solved_to_rounding(torch.zeros(1, 2, 2), torch.ones(1, 2), torch.full((1, 2), torch.inf)).any()


class OffInOneUnknown:
    """A solver whose solutions have one unknown a millionth too large, and who does not claim that they have converged."""

    def factorize(self, operator: Any) -> OffInOneUnknown:
        self.factors = LU().factorize(operator)
        return self

    def iterate(self, b: Tensor, adjoint: bool, **options: Any) -> ti.linear.LinearResult:
        x = self.factors.solve(b, adjoint)
        x = torch.cat([x[..., :1] * (1 + 1e-6), x[..., 1:]], dim=-1)
        no = torch.zeros(len(b), dtype=torch.bool)
        return ti.linear.LinearResult(x, torch.linalg.vector_norm(b, dim=-1), no.long(), no, no, no, 0)


@pytest.mark.parametrize("right", [True, False])
def test_a_derivative_in_wild_units_has_converged_and_a_wrong_one_is_reported(right: bool) -> None:
    A, v = (some[0] for some in systems(7))
    x = torch.linspace(1, 2, 6, dtype=D, requires_grad=True)
    z, info = ti.root(
        lambda z: A @ (z - x.detach()) - (x - x.detach()),
        x.detach(),
        adjoint=ti.Implicit(LU() if right else OffInOneUnknown()),
        on_failure="ignore",
    )
    (gradient,) = torch.autograd.grad(z, x, v)
    expected = exact(A.mT, v)
    error = ((gradient - expected) / expected).abs().max()
    assert (error < 1e-10) == right
    assert info.adjoint.converged == right
    tight = ti.root(
        lambda z: A @ (z - x.detach()) - (x - x.detach()),
        x.detach(),
        adjoint=ti.Implicit(rtol=1e-14),
        on_failure="ignore",
    )
    torch.autograd.grad(tight.value, x, v)
    assert not tight.info.adjoint.converged  # a tolerance that was asked for is kept to
