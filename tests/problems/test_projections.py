"""Projections against what defines them: the variational inequality, closed forms, SciPy, and finite differences of all derivatives."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from scipy.optimize import isotonic_regression, minimize
from torch import Tensor

import torchimplicit as ti
from torchimplicit import projections

D = torch.float64
INF = float("inf")
A = torch.tensor([[1.0, -2.0, 0.5, 0.0, 3.0, 1.0], [0.3, 1.0, 0.0, 2.0, -1.0, 0.7]], dtype=D)
NORMAL = torch.tensor([1.0, -0.5, 2.0, 0.0, 0.8, -1.5], dtype=D)
LOW = torch.tensor([-0.5, -INF, -0.3, -0.4, -0.2, -1.0], dtype=D)
HIGH = torch.tensor([0.4, 0.6, INF, 0.5, 0.9, 0.3], dtype=D)

Project = Callable[[Tensor], Tensor]
SETS: dict[str, Project] = {
    "box": lambda v: projections.box(v, LOW, HIGH),
    "simplex": lambda v: projections.simplex(v, 1.3),
    "box and hyperplane": lambda v: projections.box_and_hyperplane(v, NORMAL, 0.2, LOW, HIGH),
    "affine": lambda v: projections.affine(v, A, torch.tensor([0.4, -1.0], dtype=D)),
    "l1 ball": lambda v: projections.l1_ball(v, 1.7),
    "l2 ball": lambda v: projections.l2_ball(v, 1.2),
    "second-order cone": projections.second_order_cone,
    "isotonic": lambda v: projections.isotonic(v, torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 1.0], dtype=D)),
    "semidefinite": lambda v: projections.positive_semidefinite(
        torch.stack([v[..., :3], v[..., [1, 3, 4]], v[..., [2, 4, 5]]], -1)
    ),
}
MAPS: dict[str, Project] = {
    **SETS,
    "proximal l1": lambda v: projections.proximal_l1(v, 0.6),
    "proximal l2": lambda v: projections.proximal_l2(v, 0.6),
    "proximal max": lambda v: projections.proximal_max(v, 0.6),
    "birkhoff": lambda v: projections.birkhoff(torch.stack([v[..., :3], v[..., 3:], v[..., 1:4]], -1), 0.5),
}


def points(rows: int = 5) -> Tensor:
    return 1.5 * torch.randn(rows, 6, generator=torch.Generator().manual_seed(1), dtype=D)


def weights(name: str) -> Tensor:
    return torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 1.0], dtype=D) if name == "isotonic" else torch.ones(6, dtype=D)


@pytest.mark.parametrize("name", [name for name in SETS if name != "semidefinite"])
def test_the_variational_inequality_holds_and_the_set_is_left_alone(name: str) -> None:
    project, w = SETS[name], weights(name)
    v, others = points(), project(3 * points(40))
    z = project(v)
    assert (z - v).abs().max() > 0.1
    torch.testing.assert_close(project(z), z, rtol=1e-12, atol=1e-12)
    inner = ((w * (v - z)).unsqueeze(1) * (others - z.unsqueeze(1))).sum(
        -1
    )  # ⟨v − z, y − z⟩ ≤ 0 for every y of the set
    assert inner.max() < 1e-12


def test_the_sets_are_the_sets() -> None:
    v = points()
    for name, total in (("simplex", 1.3),):
        z = SETS[name](v)
        assert z.min() >= 0
        torch.testing.assert_close(z.sum(-1), torch.full((5,), total, dtype=D), rtol=1e-14, atol=0)
    z = SETS["box and hyperplane"](v)
    assert ((z >= LOW) & (z <= HIGH)).all()
    torch.testing.assert_close(z @ NORMAL, torch.full((5,), 0.2, dtype=D), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(SETS["affine"](v) @ A.T, torch.tensor([0.4, -1.0], dtype=D).expand(5, 2))
    assert SETS["l1 ball"](v).abs().sum(-1).max() <= 1.7 + 1e-12
    assert torch.linalg.vector_norm(SETS["l2 ball"](v), dim=-1).max() <= 1.2 + 1e-12
    z = SETS["second-order cone"](v)
    assert (torch.linalg.vector_norm(z[:, 1:], dim=-1) <= z[:, 0] + 1e-12).all()
    assert (SETS["isotonic"](v).diff(dim=-1) >= 0).all()


def test_isotonic_regression_is_that_of_scipy() -> None:
    v, w = 3 * torch.randn(20, 50, dtype=D).cumsum(-1), torch.rand(20, 50, dtype=D) + 0.1
    z = projections.isotonic(v, w)
    for row, weight, found in zip(v, w, z, strict=True):
        expected = isotonic_regression(row.numpy(), weights=weight.numpy()).x
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-11, atol=1e-11)
    falling = torch.arange(50, 0, -1, dtype=D)
    torch.testing.assert_close(projections.isotonic(falling), torch.full((50,), 25.5, dtype=D))


def test_the_box_and_hyperplane_are_those_of_scipy() -> None:
    for v in points(3):
        found = minimize(
            lambda z, v: ((z - v) ** 2).sum() / 2,
            [0.0] * 6,
            (v.numpy(),),
            bounds=list(zip(LOW.tolist(), HIGH.tolist(), strict=True)),
            constraints={"type": "eq", "fun": lambda z: z @ NORMAL.numpy() - 0.2},
            options={"ftol": 1e-15},
        )
        torch.testing.assert_close(SETS["box and hyperplane"](v), torch.from_numpy(found.x), rtol=0, atol=1e-6)


def test_the_positive_part_of_a_matrix_is_that_of_its_eigenvalues_even_where_they_meet() -> None:
    Q = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=D))[0]
    for values in ([3.0, 1.0, -2.0, -0.5], [2.0, 2.0, -1.0, -1.0]):
        lam = torch.tensor(values, dtype=D)
        V = (Q * lam @ Q.T).requires_grad_()
        P = projections.positive_semidefinite(V)
        torch.testing.assert_close(P.detach(), Q * lam.clamp(min=0) @ Q.T)
        H = torch.tensor([[0.0, 1, 2, 0], [1, 3, 0, 1], [2, 0, 1, 1], [0, 1, 1, 2]], dtype=D)
        tangent = torch.func.jvp(projections.positive_semidefinite, (V.detach(),), (H,))[1]
        positive = (lam > 0).double()
        quotient = (lam.clamp(min=0)[:, None] - lam.clamp(min=0)[None]) / (lam[:, None] - lam[None])
        quotient = torch.where(quotient.isnan(), positive[:, None] * positive[None], quotient)
        torch.testing.assert_close(tangent, Q @ (quotient * (Q.T @ H @ Q)) @ Q.T)  # Daleckii and Krein
        assert torch.autograd.gradcheck(projections.positive_semidefinite, (V,))
        assert torch.autograd.gradgradcheck(projections.positive_semidefinite, (V,), fast_mode=True)


def test_a_singular_matrix_has_no_derivative_and_that_is_said() -> None:
    V = torch.diag(torch.tensor([1.0, 0.0, -1.0], dtype=D)).requires_grad_()
    P = projections.positive_semidefinite(V)
    torch.testing.assert_close(P.detach(), torch.diag(torch.tensor([1.0, 0.0, 0.0], dtype=D)))
    with pytest.warns(ti.ConvergenceWarning, match="singular"):
        P.sum().backward()


def test_a_matrix_that_is_not_finite_does_not_reach_the_others() -> None:
    V = torch.eye(3, dtype=D).repeat(2, 1, 1)
    V[0, 1, 1] = torch.nan
    with pytest.warns(ti.ConvergenceWarning, match="nonfinite"):
        P = projections.positive_semidefinite(V)
    assert P[0].isnan().all()
    torch.testing.assert_close(P[1], V[1])


@pytest.mark.parametrize("name", MAPS)
def test_derivatives_of_both_orders_and_transforms(name: str) -> None:
    project, v = MAPS[name], points(2)
    assert torch.autograd.gradcheck(project, (v.requires_grad_(),), fast_mode=True)
    assert torch.autograd.gradgradcheck(project, (v[:1].detach().requires_grad_(),), fast_mode=True)
    v = v.detach()
    z = project(v)
    tight = {"rtol": 1e-7, "atol": 1e-9}
    torch.testing.assert_close(torch.vmap(project)(v), z, **tight)
    torch.testing.assert_close(torch.stack([project(row) for row in v]), z, **tight)
    reverse, forward = torch.func.jacrev(project)(v[0]), torch.func.jacfwd(project)(v[0])
    torch.testing.assert_close(reverse, forward, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(torch.vmap(torch.func.jacrev(project))(v)[0], reverse, rtol=1e-6, atol=1e-8)


def test_gradients_reach_every_argument() -> None:
    v = points(2)
    total = torch.tensor([1.3, 0.7], dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: projections.simplex(v, t), (total,))
    assert torch.autograd.gradcheck(lambda r: projections.l1_ball(v, r), (total,))
    assert torch.autograd.gradcheck(lambda r: projections.l2_ball(v, r), (total,))
    low, high = torch.where(LOW.isinf(), -9.0, LOW), torch.where(HIGH.isinf(), 9.0, HIGH)
    arguments = tuple(t.clone().requires_grad_() for t in (NORMAL[[0, 1, 2, 4, 4, 5]], total * 0.1, low, high))
    arguments = tuple(t.detach().requires_grad_() for t in arguments)
    assert torch.autograd.gradcheck(lambda a, b, l, u: projections.box_and_hyperplane(v, a, b, l, u), arguments)
    assert torch.autograd.gradgradcheck(lambda a, b, l, u: projections.box_and_hyperplane(v, a, b, l, u), arguments)
    data = A.clone().requires_grad_(), torch.tensor([0.4, -1.0], dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(lambda A, b: projections.affine(v, A, b), data)
    assert torch.autograd.gradcheck(lambda w: projections.isotonic(v, w), (torch.rand(6, dtype=D).requires_grad_(),))


def test_no_derivative_is_halved_where_a_number_touches_its_bound() -> None:
    v = torch.tensor([1.0, 0.0, 0.5], dtype=D, requires_grad=True)
    for z, expected in ((projections.box(v, 0.0, 1.0), 1.0), (projections.proximal_l1(v, 0.5)[2], 1.0)):
        (grad,) = torch.autograd.grad(z.sum(), v)
        assert set(grad.tolist()) <= {0.0, expected}
    low = torch.tensor(0.3, dtype=D, requires_grad=True)  # two bounds that are the same move z together
    z = projections.box(v, low, low)
    assert torch.autograd.grad(z[0], low)[0] == 1
    assert torch.equal(torch.autograd.grad(projections.box(v, 0.3, 0.3).sum(), v)[0], torch.zeros(3, dtype=D))


def test_no_digits_are_lost_in_large_numbers() -> None:
    """Σ z = 1, or ‖z‖ = 1, beside numbers whose own rounding is larger than that, or whose squares overflow or vanish."""

    def tensor(*numbers: float) -> Tensor:
        return torch.tensor(numbers, dtype=D)

    torch.testing.assert_close(projections.simplex(tensor(1e16, 1e16 + 2, 0)), tensor(0, 1, 0))
    torch.testing.assert_close(projections.simplex(tensor(1e20, 1)), tensor(1, 0))
    v = torch.tensor([1.0, 1.25, 1.5, -3.0])
    torch.testing.assert_close(projections.simplex(v + 2**20), projections.simplex(v), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(projections.l1_ball(tensor(1e200, 1e200)), tensor(0.5, 0.5))
    torch.testing.assert_close(projections.l2_ball(tensor(3e200, 4e200)), tensor(0.6, 0.8))
    torch.testing.assert_close(projections.l2_ball(tensor(3e-200, 4e-200), 1e-200) * 1e200, tensor(0.6, 0.8))
    torch.testing.assert_close(projections.proximal_l2(tensor(3e-200, 4e-200), 0.0) * 1e200, tensor(3, 4))
    with pytest.raises(ValueError, match="proximal_max: t is not positive"):
        projections.proximal_max(tensor(1, 2), 0.0)
    torch.testing.assert_close(projections.second_order_cone(tensor(0, 3e200, 4e200)) / 1e200, tensor(2.5, 1.5, 2))


def test_redundant_rows_of_an_affine_set() -> None:
    twice, b = torch.cat([A, A[:1] + A[1:]]), torch.tensor([0.4, -1.0, -0.6], dtype=D)
    torch.testing.assert_close(projections.affine(points(), twice, b), SETS["affine"](points()))
    with pytest.raises(ValueError, match="no solution"):
        projections.affine(points(), twice, b + torch.tensor([0, 0, 1.0], dtype=D))


def sinkhorn(cost: Tensor, a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Its alternating steps, in the log domain."""
    K, f, g = -cost / temperature, torch.zeros_like(a), torch.zeros_like(b)
    for _ in range(3000):
        f = a.log() - torch.logsumexp(K + g, -1)
        g = b.log() - torch.logsumexp(K + f.unsqueeze(-1), -2)
    return (f.unsqueeze(-1) + K + g).exp()


def test_a_transport_plan_is_the_limit_of_sinkhorns_steps() -> None:
    rng = torch.Generator().manual_seed(2)
    cost = torch.rand(4, 7, generator=rng, dtype=D)
    a, b = torch.rand(4, generator=rng, dtype=D) + 0.2, torch.rand(7, generator=rng, dtype=D) + 0.2
    a, b = a / a.sum(), b / b.sum()
    P = projections.transport(cost, a, b, 0.05)
    torch.testing.assert_close(P, sinkhorn(cost, a, b, 0.05), rtol=1e-6, atol=1e-9)

    def of_data(cost: Tensor, a: Tensor, b: Tensor, t: Tensor) -> Tensor:  # along changes that keep the sums
        return projections.transport(cost, torch.softmax(a, -1), torch.softmax(b, -1), t)

    data = tuple(t.requires_grad_() for t in (cost, a.log(), b.log(), torch.tensor(0.3, dtype=D)))
    assert torch.autograd.gradcheck(of_data, data, fast_mode=True)
    assert torch.autograd.gradgradcheck(of_data, data, fast_mode=True)


def test_a_soft_permutation_tends_to_the_best_one() -> None:
    scores = torch.tensor([[0.0, 1.0, 0.2], [0.9, 0.1, 0.0], [0.1, 0.3, 0.2]], dtype=D)
    P = projections.birkhoff(scores, 0.04)
    torch.testing.assert_close(P.sum(-1), torch.ones(3, dtype=D))
    torch.testing.assert_close(P.sum(-2), torch.ones(3, dtype=D), rtol=1e-7, atol=0)
    torch.testing.assert_close(P, torch.eye(3, dtype=D)[[1, 0, 2]], rtol=0, atol=1e-3)


def test_what_does_not_fit_is_refused() -> None:
    v = points()
    with pytest.raises(ValueError, match="total is not positive"):
        projections.simplex(v, torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0], dtype=D))
    with pytest.raises(ValueError, match="no z of the box"):
        projections.box_and_hyperplane(v, NORMAL, 99.0, -1.0, 1.0)
    with pytest.raises(ValueError, match="lies above"):
        projections.box(v, 1.0, 0.0)
    with pytest.raises(ValueError, match="radius is not positive"):
        projections.l1_ball(v, 0.0)
    with pytest.raises(ValueError, match="a weight is not positive"):
        projections.isotonic(v, 0.0)
    with pytest.raises(ValueError, match="the sums of a and b"):
        projections.transport(torch.zeros(2, 2), torch.ones(2), torch.rand(2))
    with pytest.raises(ValueError, match="square"):
        projections.positive_semidefinite(v)
    with pytest.raises(TypeError, match="real floating"):
        projections.simplex(torch.ones(3, dtype=torch.int64))
    inside = torch.vmap(lambda v, t: projections.simplex(v, t))(v[:2], torch.tensor([1.0, -1.0], dtype=D))
    assert inside[0].isfinite().all()
    assert inside[1].isnan().all()


@pytest.mark.parametrize(
    ("project", "error", "message"),
    [
        (lambda v: projections.simplex(v, torch.ones(3)), ValueError, r"v \(5, 6\), total \(3,\)"),
        (lambda v: projections.simplex(v, "1.0.0"), TypeError, "the total must be a number or a tensor; got str"),
        (lambda v: projections.box(v, torch.ones(3), 2.0), ValueError, r"box: lower .*to shape \(5, 6\); got .*\(3,\)"),
        (
            lambda v: projections.box_and_hyperplane(v, torch.ones(4), 1.0, 0.0, 1.0),
            ValueError,
            r"a \(4,\), lower \(\)",
        ),
        (
            lambda v: projections.isotonic(v, torch.ones(3)),
            ValueError,
            r"weights .*got a float64 tensor of shape \(3,\)",
        ),
        (lambda v: projections.l2_ball(v, torch.ones(3)), ValueError, r"radius .*to shape \(5,\); got .*\(3,\)"),
        (lambda v: projections.proximal_l1(v, torch.ones(3)), ValueError, r"proximal_l1: t .*to shape \(5, 6\)"),
        (lambda v: projections.affine(v, A[:, :3], A[:, 0]), ValueError, r"v of shape \(5, 6\), A \(2, 3\), b \(2,\)"),
        (lambda v: projections.affine(v, A.float(), A[:, 0]), TypeError, "A must be a tensor of v's dtype.*float32"),
        (lambda v: projections.transport(v, 1.0, v[0]), TypeError, "a must be a tensor of vectors; got float"),
    ],
)
def test_what_was_given_is_named(project: Callable[[Tensor], Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        project(points())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_matrices_in_half_precision_are_projected_in_single(dtype: torch.dtype) -> None:
    V = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = V.double().requires_grad_()
    V.requires_grad_()
    P, Q = projections.positive_semidefinite(V), projections.positive_semidefinite(exact)
    assert P.dtype == dtype
    torch.testing.assert_close(
        P.double(), Q, rtol=0.6 * torch.finfo(dtype).eps, atol=1e-6
    )  # rounded to the nearest, once
    (grad,), (same,) = torch.autograd.grad(P.sum(), V), torch.autograd.grad(Q.sum(), exact)
    torch.testing.assert_close(grad, same.to(dtype))


def test_what_is_not_finite_shows_in_its_own_system_only() -> None:
    v = points()
    v[1, 2] = torch.nan
    for name, project in MAPS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ti.ConvergenceWarning)
            z = project(v)
        assert z[1].isnan().any(), name
        assert z[[0, 2, 3, 4]].isfinite().all(), name
