"""Large cone programs of sparse data: their Jacobians are formed and factorised by entries."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from tests.programs.random_programs import D
from tests.sparsity.test_problems import Largest
from torchimplicit import Cones, Status

pytest.importorskip("clarabel", reason="the extra cone is not installed")


def sparse_eye(n: int) -> Tensor:
    places = torch.arange(n).expand(2, n)
    return torch.sparse_coo_tensor(places, torch.ones(n, dtype=D), (n, n), check_invariants=True).coalesce()


def nearest(x: Tensor, half: int) -> Tensor:
    """The projection of the first ``half`` numbers on z ≥ 0, and of each three after these on ‖(b, c)‖ ≤ a."""
    a, u = x[half:].unflatten(-1, (-1, 3)).split([1, 2], -1)
    length = u.norm(dim=-1, keepdim=True)
    between = (a + length) / 2
    cone = torch.cat([between, between * u / length], -1)
    cone = torch.where(length <= a, torch.cat([a, u], -1), torch.where(length <= -a, 0, cone))
    return torch.cat([x[:half].clamp(min=0), cone.flatten()])


def test_thousands_of_cones_are_the_closed_form_and_no_matrix_is_dense() -> None:
    half, cones = 600, 500
    n = half + 3 * cones
    x = (torch.arange(n, dtype=D) * 1.7 + 0.3).sin().requires_grad_()
    b = torch.zeros(n, dtype=D, requires_grad=True)
    product = Cones(nonnegative=half, second_order=[3] * cones)
    with Largest() as largest:
        z, info = ti.cone_program(sparse_eye(n), -x, -sparse_eye(n), b, product)
        (found, of_b) = torch.autograd.grad((z * torch.arange(n, dtype=D).cos()).sum(), (x, b))
    assert info.converged
    assert info.adjoint.converged
    exact = nearest(x, half)
    torch.testing.assert_close(z, exact, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(info.dual, exact - x, rtol=1e-9, atol=1e-10)
    weights = torch.arange(n, dtype=D).cos()
    (expected,) = torch.autograd.grad((exact * weights).sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
    # z + b lies in the cones: with x + b in the place of x it is z + b that is nearest
    torch.testing.assert_close(of_b, expected - weights, rtol=1e-8, atol=1e-9)
    assert largest.numel <= 40 * n


def test_entries_and_dense_matrices_are_the_same_with_gradients_and_ends() -> None:
    """150 unknowns and as many rows in cones of all kinds; three right-hand sides, one of which no z meets."""
    n, cones = 150, Cones(zero=20, nonnegative=70, second_order=[4, 5, 24], positive_semidefinite=[6], exponential=2)
    rng = torch.Generator().manual_seed(3)
    m = cones.rows
    A = torch.randn(m, n, dtype=D, generator=rng) * (torch.rand(m, n, dtype=D, generator=rng) < 0.1)
    A[:, 0] = 0
    A[20, :] = 0
    P = 2 * torch.eye(n, dtype=D) + torch.diag(torch.ones(n - 1, dtype=D), 1) * 0.5
    q = torch.randn(n, dtype=D, generator=rng)
    one = torch.zeros(m, dtype=D)
    one[20:90] = 1
    start = 90
    for size in (4, 5, 24):
        one[start] = 2
        start += size
    one[start : start + 21] = Cones.packed(torch.eye(6, dtype=D))
    start += 21
    one[start:] = torch.tensor([-1.0, 1.0, 2.0] * 2, dtype=D)
    b = torch.stack([one, one + 0.1, one])
    b[2, 20] = -1  # 0 z <= -1
    b.requires_grad_(), q.requires_grad_()

    def solved(convert: bool) -> tuple[Tensor, ...]:
        data = [(M.to_sparse_csr() if convert else M.clone()).requires_grad_() for M in (P, A)]
        z, info = ti.cone_program(data[0], q, data[1], b, cones, on_failure="ignore")
        assert info.status.tolist() == [0, 0, Status.PRIMAL_INFEASIBLE]
        loss = (z[:2] * torch.arange(n, dtype=D).sin()).sum() + info.dual[:2].square().sum()
        grads = torch.autograd.grad(loss, (q, b, *data))
        places = [(M != 0) for M in (P, A)]
        of_P, of_A = (g.to_dense()[at] for g, at in zip(grads[2:], places, strict=True))
        return z[:2], info.dual[:2], grads[0], grads[1][:2], of_P, of_A

    torch.testing.assert_close(solved(True), solved(False), rtol=1e-7, atol=1e-8)


def test_second_derivatives_by_entries() -> None:
    n = 150
    x = (torch.arange(n, dtype=D) * 1.7 + 0.3).sin().requires_grad_()

    def found(x: Tensor) -> Tensor:
        return ti.cone_program(
            sparse_eye(n), -x, -sparse_eye(n), torch.zeros(n, dtype=D), Cones(nonnegative=n - 30, second_order=[3] * 10)
        ).value

    v = torch.arange(n, dtype=D).cos()
    functions = found, lambda x: nearest(x, n - 30)
    first = [torch.autograd.grad((f(x) ** 3).sum(), x, create_graph=True)[0] for f in functions]
    second = [torch.autograd.grad(g @ v, x)[0] for g in first]
    torch.testing.assert_close(second[0], second[1], rtol=1e-7, atol=1e-8)
