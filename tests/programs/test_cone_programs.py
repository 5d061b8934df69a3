"""Cone programs: closed forms, other methods and other solvers; derivatives of every order; what is said where there is no solution."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import torchimplicit as ti
from tests.programs.random_programs import D, known
from torchimplicit import Cones, ConvergenceWarning

pytest.importorskip("clarabel", reason="the extra cone is not installed")


def tensor(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=D)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def nearest(x: Tensor, cones: Cones) -> ti.Solution:
    """The projection of x on the cone: min ½‖z − x‖² with z in it."""
    n = x.shape[-1]
    eye = torch.eye(n, dtype=D)
    return ti.cone_program(eye, -x, -eye, torch.zeros(n, dtype=D), cones)


def entropy(c: Tensor, A: Tensor, b: Tensor) -> ti.Solution:
    """The largest Σ −p log p − cᵀp over Ap = b: for each p a cone (t, p, 1) ∋ exp, with t ≤ −p log p; unknowns (p, t)."""
    n, k = A.shape[-1], A.shape[-2]
    rows = torch.zeros(k + 3 * n, 2 * n, dtype=D)
    rows[:k, :n] = A
    at = torch.arange(n)
    rows[k + 3 * at, n + at], rows[k + 3 * at + 1, at] = -1, -1
    right = torch.cat([b, tensor(0, 0, 1).repeat(n)])
    q = torch.cat([c, -torch.ones_like(c)], -1)
    return ti.cone_program(None, q, rows, right, Cones(zero=k, exponential=n))


def test_the_projection_on_second_order_cones_is_the_closed_form() -> None:
    x = 2 * random(50, 7)
    z, info = nearest(x, Cones(second_order=[3, 4]))
    assert info.converged.all()
    expected = torch.cat([ti.projections.second_order_cone(part) for part in x.split([3, 4], -1)], -1)
    torch.testing.assert_close(z, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(info.dual, z - x, rtol=1e-12, atol=1e-12)


def test_the_projection_on_matrices_is_that_of_the_eigenvalues() -> None:
    V = random(8, 5, 5)
    V = V + V.mT
    packed = Cones.packed(V).requires_grad_()
    torch.testing.assert_close(Cones.matrix(packed), V)
    torch.testing.assert_close((packed**2).sum(-1), (V * V).sum((-2, -1)))  # inner products stay what they are
    z, info = nearest(packed, Cones(positive_semidefinite=[5]))
    assert info.converged.all()
    expected = ti.projections.positive_semidefinite(V)
    torch.testing.assert_close(Cones.matrix(z), expected, rtol=1e-10, atol=1e-10)
    weights = random(5, 5, seed=1)
    weights = weights + weights.mT
    (grad,) = torch.autograd.grad((Cones.matrix(z) * weights).sum(), packed)
    V.requires_grad_()
    (same,) = torch.autograd.grad((ti.projections.positive_semidefinite(V) * weights).sum(), V)
    torch.testing.assert_close(Cones.matrix(grad), same, rtol=1e-8, atol=1e-8)


def test_the_projection_on_exponential_cones_is_complementary_on_every_face() -> None:
    """Moreau: x = z − y with z in the cone, y in its dual and zᵀy = 0; and the points whose projection is known."""
    x = torch.cat([3 * random(60, 3), tensor([-1, -2, 3], [-1, -2, -3], [0, 1, 5], [1, 1, 1], [1, -5, 4])])
    z, info = nearest(x, Cones(exponential=1))
    assert info.converged.all()
    a, b, c = z.unbind(-1)
    assert (b >= -1e-12).all()
    above = b > 1e-9
    assert (c[above] - b[above] * (a / b)[above].exp() >= -1e-9).all()
    torch.testing.assert_close(z - info.dual, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((z * info.dual).sum(-1), torch.zeros(65, dtype=D), rtol=0, atol=1e-9)
    torch.testing.assert_close(z[60:63], tensor([-1, 0, 3], [-1, 0, 0], [0, 1, 5]), rtol=0, atol=1e-12)


def test_linear_and_quadratic_programs_are_those_of_quadratic_program() -> None:
    (Q, p, G, h, A, b), z, inequality, equality = known(6, 5, 8, 2, held=3)
    cones = Cones(zero=2, nonnegative=8)
    found, info = ti.cone_program(Q, p, torch.cat([A, G], -2), torch.cat([b, h], -1), cones)
    assert info.converged.all()
    torch.testing.assert_close(found, z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(info.dual, torch.cat([equality, inequality], -1), rtol=1e-9, atol=1e-9)
    assert (info.active[:, 2:] == (inequality > 0)).all()


def test_the_nearest_correlation_matrix_is_higham_s() -> None:
    """His example (IMA J. Numer. Anal. 22 (2002), section 4)."""
    V = tensor([1, 1, 0], [1, 1, 1], [0, 1, 1])
    diagonal = Cones.packed(torch.diag_embed(torch.eye(3, dtype=D)))  # one row for each diagonal entry
    eye = torch.eye(6, dtype=D)
    cones = Cones(zero=3, positive_semidefinite=[3])
    rows, right = torch.cat([diagonal, -eye]), torch.cat([torch.ones(3, dtype=D), torch.zeros(6, dtype=D)])
    z, info = ti.cone_program(eye, -Cones.packed(V), rows, right, cones)
    assert info.converged
    expected = tensor([1, 0.7607, 0.1573], [0.7607, 1, 0.7607], [0.1573, 0.7607, 1])
    torch.testing.assert_close(Cones.matrix(z), expected, rtol=0, atol=5e-5)


def test_the_largest_eigenvalue_and_its_derivative() -> None:
    """min t with tI − V ⪰ 0; the derivative is that of eigvalsh, the multiplier the projector on the eigenvector."""
    V = random(4, 4)
    V = (V + V.mT).requires_grad_()
    column = -Cones.packed(torch.eye(4, dtype=D)).unsqueeze(-1)
    z, info = ti.cone_program(None, torch.ones(1, dtype=D), column, -Cones.packed(V), Cones(positive_semidefinite=[4]))
    values, vectors = torch.linalg.eigh(V)
    torch.testing.assert_close(z[0], values[-1])
    torch.testing.assert_close(Cones.matrix(info.dual), torch.outer(vectors[:, -1], vectors[:, -1]))
    (grad,) = torch.autograd.grad(z[0], V, create_graph=True)
    (expected,) = torch.autograd.grad(values[-1], V, create_graph=True)
    torch.testing.assert_close((grad + grad.mT) / 2, expected)
    weights = random(4, 4, seed=2)
    weights = weights + weights.mT
    (second,) = torch.autograd.grad((grad * weights).sum(), V)
    (same,) = torch.autograd.grad((expected * weights).sum(), V)
    torch.testing.assert_close((second + second.mT) / 2, (same + same.mT) / 2)


def test_the_distribution_of_largest_entropy_is_softmax() -> None:
    c = random(3, 4).requires_grad_()
    z, info = entropy(c, torch.ones(1, 4, dtype=D), torch.ones(1, dtype=D))
    assert info.converged.all()
    p = torch.softmax(-c, -1)
    torch.testing.assert_close(z[:, :4], p, rtol=1e-9, atol=1e-9)
    weights = random(3, 4, seed=1)
    (grad,) = torch.autograd.grad((z[:, :4] * weights).sum(), c)
    torch.testing.assert_close(grad, torch.autograd.grad((p * weights).sum(), c)[0], rtol=1e-8, atol=1e-8)


def all_kinds(seed: int = 0) -> tuple[list[Tensor], Cones]:
    """A program with every cone, on various faces: the nearest points of x, moved into an equality and sheared."""
    cones = Cones(zero=1, nonnegative=3, second_order=[3, 3, 2], positive_semidefinite=[2, 3], exponential=2)
    n, m = 10, cones.rows
    A = random(m, n, seed=seed)
    s, y = torch.zeros(m, dtype=D), torch.zeros(m, dtype=D)
    y[0] = 0.7
    s[1:4], y[1:4] = tensor(1, 0, 0.5), tensor(0, 0.8, 0)
    s[4:7], y[4:7] = tensor(5, 3, 4), tensor(1, -0.6, -0.8)  # both on the boundary
    s[7:10] = tensor(2, 1, 1)
    y[10:12] = tensor(3, 1)
    R = torch.linalg.qr(random(3, 3, seed=1))[0]
    s[12:15] = Cones.packed(torch.eye(2, dtype=D))
    s[15:21], y[15:21] = (Cones.packed(R @ torch.diag(d) @ R.mT) for d in (tensor(1, 2, 0), tensor(0, 0, 0.5)))
    s[21:24], y[21:24] = tensor(1, 2, 2 * math.exp(0.5)), 0.3 * tensor(-math.exp(0.5), -0.5 * math.exp(0.5), 1)
    s[24:27], y[24:27] = tensor(-1, 0, 2), tensor(0, 0.4, 0)
    L, z = random(n, n, seed=seed + 2), random(n, seed=seed + 3)
    P = L @ L.mT + torch.eye(n, dtype=D)
    return [P, -P @ z - A.mT @ y, A, A @ z + s, z, y], cones


def test_a_program_with_every_cone_has_the_solution_that_was_chosen() -> None:
    (P, q, A, b, z, y), cones = all_kinds()
    found, info = ti.cone_program(P, q, A, b, cones)
    assert info.converged
    torch.testing.assert_close(found, z, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(info.dual, y, rtol=1e-10, atol=1e-10)
    held = [1, 0, 1, 0, *[1] * 3, *[0] * 3, *[1] * 2, *[0] * 3, *[1] * 6, *[1] * 3, *[1] * 3]
    assert info.active.int().tolist() == held


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_first_and_second_derivatives_in_all_data_are_those_of_differences(every: bool) -> None:
    (P, q, A, b, *_), cones = all_kinds()
    data = [t.requires_grad_() for t in (P, q, A, b)]

    def solved(P: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        z, info = ti.cone_program((P + P.mT) / 2, *rest, cones)
        return z, info.dual

    assert gradcheck(solved, data, fast_mode=True)
    assert gradgradcheck(solved if every else lambda *data: solved(*data)[0], data, fast_mode=True)


def test_the_multipliers_are_the_derivatives_of_the_least_value() -> None:
    (P, q, A, b, _, y), cones = all_kinds()
    b.requires_grad_()
    z, _ = ti.cone_program(P, q, A, b, cones)
    (grad,) = torch.autograd.grad(z @ P @ z / 2 + q @ z, b)
    torch.testing.assert_close(grad, -y, rtol=1e-8, atol=1e-8)


def test_every_transform_gives_the_same_derivatives() -> None:
    (P, q, A, b, *_), cones = all_kinds()
    q = q + 1e-3 * random(3, 10)

    def solved(q: Tensor, b: Tensor = b) -> Tensor:
        return ti.cone_program(P, q, A, b, cones).value

    torch.testing.assert_close(torch.func.vmap(solved)(q), solved(q))
    one_by_one = torch.stack([torch.autograd.functional.jacobian(solved, v) for v in q])
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(torch.func.vmap(transform(solved))(q), one_by_one, rtol=1e-7, atol=1e-8)

    def loss(b: Tensor) -> Tensor:
        return solved(q[0], b).pow(3).sum()

    exact, direction, eps = torch.func.hessian(loss)(b), random(len(b), seed=5), 1e-5
    slopes = [torch.func.grad(loss)(b + sign * eps * direction) for sign in (1, -1)]
    torch.testing.assert_close(exact @ direction, (slopes[0] - slopes[1]) / (2 * eps), rtol=1e-5, atol=1e-6)


def test_each_system_of_a_batch_has_its_own_end() -> None:
    """min qᵀz over ‖z̄‖ ≤ z₁ ≤ t, z₁ = r: solved, contradictory, unbounded, degenerate (at the apex), NaN, not convex."""
    cone = -torch.eye(3, dtype=D)
    A = torch.cat([tensor([1, 0, 0]), cone]).expand(6, 4, 3).clone()
    A[2, 0] = 0  # nothing holds z₁
    b = torch.zeros(6, 4, dtype=D)
    b[:, 0] = tensor(2, -1, 1, 0, math.nan, 2)
    q = tensor([1, 3, 4], [1, 0, 0], [-1, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 0]).requires_grad_()
    P = torch.zeros(6, 3, 3, dtype=D)
    P[5, 1, 1] = -1
    with pytest.warns(ConvergenceWarning, match="primal_infeasible(.|\n)*dual_infeasible"):
        z, info = ti.cone_program(P, q, A, b, Cones(nonnegative=1, second_order=[3]))
    names = ["converged", "primal_infeasible", "dual_infeasible", "converged", "nonfinite", "nonconvex"]
    assert info.status_names == names
    torch.testing.assert_close(z[[0, 3]], tensor([2, -1.2, -1.6], [0, 0, 0]), rtol=0, atol=1e-9)
    assert z[[1, 2, 4, 5]].isnan().all()
    y, ray = info.certificate.dual[1], info.certificate.z[2]
    torch.testing.assert_close(A[1].mT @ y, tensor(0, 0, 0), rtol=0, atol=1e-7)
    assert y[0] >= 0
    assert y[1] >= y[2:].norm() - 1e-9
    torch.testing.assert_close(b[1] @ y, tensor(-1)[0])
    assert ray[0] >= ray[1:].norm() - 1e-9
    torch.testing.assert_close(q.detach()[2] @ ray, tensor(-1)[0])
    assert info.certificate.z[1].isnan().all()
    assert info.certificate.dual[0].isnan().all()
    (grad,) = torch.autograd.grad(z[0].sum(), q, retain_graph=True)
    assert not grad.isnan().any()
    with pytest.warns(ConvergenceWarning):
        z[3].sum().backward()
    assert info.adjoint.status_names[3] in ("degenerate", "singular")


@pytest.mark.parametrize(
    ("x", "cones"),
    [
        (tensor(0.0, 1), Cones(nonnegative=2)),
        (tensor(5, 3, 4), Cones(second_order=[3])),
        (tensor(-5, 3, 4), Cones(second_order=[3])),
        (Cones.packed(torch.diag(tensor(1, 0, -1))), Cones(positive_semidefinite=[3])),
        (tensor(1, 2, 2 * math.exp(0.5)), Cones(exponential=1)),
    ],
)
def test_a_point_between_two_faces_has_one_sided_derivatives_and_that_is_reported(x: Tensor, cones: Cones) -> None:
    x = x.clone().requires_grad_()
    z, info = nearest(x, cones)
    assert info.converged
    with pytest.warns(ConvergenceWarning, match="degenerate"):
        z.sum().backward()


def test_a_solution_that_is_not_unique_has_no_derivative_and_that_is_reported() -> None:
    q = tensor(1, 1).requires_grad_()
    rows = torch.cat([tensor([1, 1]), -torch.eye(2, dtype=D)])
    z, info = ti.cone_program(None, q, rows, tensor(1, 0, 0), Cones(zero=1, nonnegative=2))
    assert info.converged
    with pytest.warns(ConvergenceWarning, match="singular|degenerate"):
        z[0].backward()


def test_equalities_that_follow_from_others_leave_the_derivatives_in_q_exact() -> None:
    A, b = tensor([1, 1, 1], [2, 2, 2], [1, -1, 0]), tensor(1, 2, 0)
    P, q = torch.diag(tensor(1, 2, 3)), tensor(1, 2, 3).requires_grad_()
    z, info = ti.cone_program(P, q, A, b, Cones(zero=3))
    assert info.converged
    w, _ = ti.cone_program(P, q, A[::2], b[::2], Cones(zero=2))
    torch.testing.assert_close(z, w)
    weights = tensor(1, -2, 0.5)
    grads = [torch.autograd.grad(v @ weights, q)[0] for v in (z, w)]
    torch.testing.assert_close(*grads)


def test_sparse_data_are_the_same_and_their_entries_have_gradients() -> None:
    import scipy.sparse

    (P, q, A, b, *_), cones = all_kinds()
    A = torch.where(A.abs() > 0.5, A, 0)
    z, _ = ti.cone_program(P, q, A, b, cones)
    dense = A.clone().requires_grad_()
    (expected,) = torch.autograd.grad(ti.cone_program(P, q, dense, b, cones).value.square().sum(), dense)
    for convert in (torch.Tensor.to_sparse_csr, torch.Tensor.to_sparse_coo):
        sparse = convert(A).requires_grad_()
        w, info = ti.cone_program(convert(P), q, sparse, b, cones)
        torch.testing.assert_close(w, z)
        (grad,) = torch.autograd.grad(w.square().sum(), sparse)
        torch.testing.assert_close(grad.to_dense(), torch.where(A != 0, expected, 0), rtol=1e-7, atol=1e-8)
    q.requires_grad_()
    w, info = ti.cone_program(scipy.sparse.csr_array(P.numpy()), q, scipy.sparse.coo_array(A.numpy()), b, cones)
    torch.testing.assert_close(w, z)
    w.sum().backward()
    assert info.adjoint.converged


def test_float32_is_returned_as_it_came_and_data_broadcast() -> None:
    (P, q, A, b, z, _), cones = all_kinds()
    found, info = ti.cone_program(P.float(), q.float(), A.float(), b.float(), cones)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), z, rtol=1e-4, atol=1e-4)
    many, info = ti.cone_program(P, q.expand(2, 1, 10), A, b.expand(3, -1), cones)
    assert many.shape == (2, 3, 10)
    assert info.status.shape == (2, 3)
    torch.testing.assert_close(many[1, 2], z)
    assert ti.cone_program(P, q.expand(0, -1), A, b, cones).value.shape == (0, 10)


EYE = torch.eye(2, dtype=D)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"P": torch.eye(3, dtype=D)}, r"P must have shape \(..., 2, 2\)"),
        ({"A": tensor([1, 1])}, r"A must have shape \(..., 2, 2\)"),
        ({"cones": Cones(zero=1)}, "has 1 rows, but b has 2 numbers"),
        ({"cones": {"zero": 2}}, r"cones must be a ti.Cones"),
        ({"A": EYE.float()}, "one dtype and one device"),
        ({"b": None}, "b must be a dense tensor"),
        ({"P": "I"}, "P must be a tensor, dense or sparse"),
        ({"q": torch.zeros(3, 2, dtype=D), "b": torch.zeros(2, 2, dtype=D)}, "do not broadcast"),
        ({"batch_ndim": 1}, "batch_ndim=1, but the data have 0"),
        ({"adjoint": ti.Unrolled()}, "no derivative"),
        ({"solver": "clarabel"}, "one for cone programs"),
    ],
)
def test_what_does_not_fit_is_named(arguments: dict[str, Any], message: str) -> None:
    data = {"P": EYE, "q": tensor(1, 2), "A": EYE, "b": tensor(1, 2), "cones": Cones(nonnegative=2)}
    with pytest.raises((TypeError, ValueError), match=message):
        ti.cone_program(**{**data, **arguments})


def test_cones_and_settings_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="zero must be a count"):
        Cones(zero=-1)
    with pytest.raises(ValueError, match="second_order must be a list of sizes"):
        Cones(second_order=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Clarabel has no setting 'tolerance'"):
        ti.interop.Clarabel(tolerance=1)


def test_the_settings_and_the_step_limit_reach_the_solver() -> None:
    (P, q, A, b, *_), cones = all_kinds()
    _, info = ti.cone_program(P, q, A, b, cones, max_steps=1, on_failure="ignore")
    assert not info.converged
    assert info.steps == 1
    loose = ti.cone_program(
        P, q, A, b, cones, solver=ti.interop.Clarabel(tol_gap_abs=1e-3, tol_gap_rel=1e-3, tol_feas=1e-3)
    )
    tight = ti.cone_program(P, q, A, b, cones)
    assert loose.info.steps < tight.info.steps
    torch.testing.assert_close(loose.value, tight.value, rtol=1e-9, atol=1e-9)


def test_moreau_finds_the_same_and_reports_the_same() -> None:
    pytest.importorskip("moreau", reason="the extra moreau is not installed")
    moreau = ti.interop.Moreau()
    (P, q, A, b, z, _), cones = all_kinds()
    (found, info), clarabel = ti.cone_program(P, q, A, b, cones, solver=moreau), ti.cone_program(P, q, A, b, cones)
    assert info.converged
    torch.testing.assert_close(found, z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(info.dual, clarabel.info.dual, rtol=1e-9, atol=1e-9)
    sparse = ti.cone_program(P.to_sparse(), q, A.to_sparse(), b, cones, solver=moreau).value
    torch.testing.assert_close(sparse, z, rtol=1e-9, atol=1e-9)
    rows = torch.cat([tensor([1, 0, 0]), -torch.eye(3, dtype=D)])
    right = tensor([2, 0, 0, 0], [-1, 0, 0, 0])
    with pytest.warns(ConvergenceWarning, match="primal_infeasible"):
        found, info = ti.cone_program(
            None, tensor(1, 3, 4), rows, right, Cones(zero=1, second_order=[3]), solver=moreau
        )
    assert info.status_names == ["converged", "primal_infeasible"]
    torch.testing.assert_close(found[0], tensor(2, -1.2, -1.6))
    with pytest.raises(TypeError, match="Moreau has no setting 'tolerance'"):
        ti.interop.Moreau(tolerance=1)
