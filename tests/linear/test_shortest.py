"""Where matrices are singular to rounding, the shortest solutions; elsewhere nothing but the factors."""

from __future__ import annotations

import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.linear import LU
from torchimplicit.linear.shortest import invert

D = torch.float64


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(3))


def unasked() -> Tensor:
    raise AssertionError("nothing more is asked of a regular matrix")


def test_only_singular_systems_of_a_batch_have_a_shortest_solution_and_it_is_the_pseudo_inverses() -> None:
    A = drawn(3, 4, 4)
    A[1, 3] = A[1, 0] - 2 * A[1, 1] / 3
    b = (A @ drawn(3, 4, 1)).squeeze(-1)
    found = invert(LU(), A, b, torch.zeros_like(b), lambda: A)
    assert found.rows is not None
    assert found.rows.tolist() == [False, True, False]
    x = found.solve(LU(), b)
    assert torch.allclose(x[[0, 2]], torch.linalg.solve(A, b)[[0, 2]], rtol=1e-10)
    assert torch.allclose((A @ x.unsqueeze(-1)).squeeze(-1), b, atol=1e-12)
    assert x[1].norm() <= 4 * (torch.linalg.pinv(A[1]) @ b[1]).norm()  # the shortest in other units


def test_a_regular_matrix_in_bad_units_is_left_alone() -> None:
    A = torch.logspace(-12, 12, 5, dtype=D).unsqueeze(-1) * drawn(5, 5)
    found = invert(LU(equilibrate=False), A.unsqueeze(0), A.sum(-1).unsqueeze(0), torch.zeros(1, 5, dtype=D), unasked)
    assert found.shortest is None
    assert torch.allclose(found.solve(LU(equilibrate=False), A.sum(-1).unsqueeze(0)), torch.ones(1, 5, dtype=D))


def test_there_is_no_step_where_the_right_hand_side_is_outside_the_range() -> None:
    A = torch.tensor([[[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0.1, 0.3, 0.7]]], dtype=D)
    outside = torch.tensor([[1.0, -1.0, 0.0]], dtype=D)
    assert invert(LU(), A, outside, outside, lambda: A).solve(LU(), outside).isnan().all()


def test_newton_does_not_leave_its_start_along_a_line_of_roots() -> None:
    """Only d = z − mean(z) enters, and A is symmetric there, so that the shortest steps leave the mean as it is."""
    P = torch.eye(4, dtype=D) - 0.25
    a = drawn(4)

    def g(z: Tensor) -> Tensor:
        d = P @ z
        return P @ (d + d**3 / 5 - a)

    z, info = ti.root(g, torch.tensor([1.0, -1.0, 2.0, 6.0], dtype=D), solver="newton", rtol=1e-13)
    assert info.converged
    assert g(z).abs().max() <= 1e-12
    assert abs(float(z.mean()) - 2) <= 1


def test_what_is_regular_in_units_of_z_is_solved_in_them() -> None:
    """Rows that are nearly parallel because one column is huge, for its unknown is tiny: exact in rationals."""
    z = torch.tensor([1e-12, 1.0, 1.0], dtype=D)
    relative = torch.tensor([[1.0, 0.5, 0.25], [1.0, -0.5, 0.5], [0.0, 1.0, 1.0]], dtype=D)
    A = (relative / z).unsqueeze(0)
    A[0, 0], A[0, 1] = 1e-9 * A[0, 0], 1e-6 * A[0, 1]
    x = torch.tensor([[3e-12, 0.25, -0.5]], dtype=D)
    b = (A @ x.unsqueeze(-1)).squeeze(-1)
    found = invert(LU(equilibrate=False), A.float(), b.float(), z.float().unsqueeze(0), lambda: A.float())
    assert torch.allclose(found.solve(LU(equilibrate=False), b.float()).double() / x, torch.ones_like(x), rtol=1e-5)
