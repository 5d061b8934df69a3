"""Complementarity problems against enumeration, closed forms and SciPy; their derivatives against differences; what is degenerate."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, nnls
from torch import Tensor

import torchimplicit as ti
from torchimplicit import Status
from torchimplicit.problems.complementarity import fischer_burmeister
from torchimplicit.solvers.equations import Equations, Estimate
from torchimplicit.solvers.method import Method

D = torch.float64


def real(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=D)


def kojima_shindo(z: Tensor, p: Tensor | float = 1.0) -> Tensor:
    """Kojima and Shindo (1986), a standard test: z = (√6/2, 0, 0, 1/2), where F₃ = 0 = z₃, (1, 0, 3, 0). ``p`` scales a constant."""
    a, b, c, d = z.unbind(-1)
    return torch.stack(
        [
            3 * a**2 + 2 * a * b + 2 * b**2 + c + 3 * d - 6 * p,
            2 * a**2 + a + b**2 + 10 * c + 2 * d - 2,
            3 * a**2 + a * b + 2 * b**2 + 2 * c + 9 * d - 9,
            a**2 + 3 * b**2 + 2 * c + 3 * d - 3,
        ],
        -1,
    )


def josephy(z: Tensor, p: Tensor | float = 1.0) -> Tensor:
    """Josephy (1979): the same with other constants, and z = (√6/2, 0, 0, 1/2) with F₃ > 0."""
    return kojima_shindo(z, p) + torch.stack([z[..., 0] * 0, z[..., 1] * 0, z[..., 2] + 8, z[..., 0] * 0], -1)


def p_matrices(batch: int, n: int) -> tuple[Tensor, Tensor]:
    """Matrices that are positive definite without being symmetric, and right-hand sides: each problem has one solution."""
    rng = torch.Generator().manual_seed(0)
    A, S = torch.randn(2, batch, n, n, generator=rng, dtype=D)
    return A @ A.mT / n + 0.2 * torch.eye(n, dtype=D) + (S - S.mT), torch.randn(batch, n, generator=rng, dtype=D)


def affine(z: Tensor, M: Tensor, q: Tensor) -> Tensor:
    return (M @ z.unsqueeze(-1)).squeeze(-1) + q


def enumerated(M: Tensor, q: Tensor, low: float, high: float) -> Tensor:
    """The solution of one affine problem in a box: of all ways to be at a bound or free, the one that is right."""
    n = len(q)
    for where in itertools.product((-1, 0, 1), repeat=n):
        at = torch.tensor(where)
        if (high == torch.inf) and (at == 1).any():
            continue
        z = torch.zeros(n, dtype=D)
        z[at == -1], z[at == 1] = low, high
        free = at == 0
        if free.any():
            z[free] = torch.linalg.solve(M[free][:, free], -(q + M @ z)[free])
        F = M @ z + q
        right = torch.where(free, (low <= z) & (z <= high), torch.where(at == -1, F >= 0, F <= 0))
        if right.all():
            return z
    raise AssertionError("there is a solution")


def test_the_function_vanishes_exactly_at_complementary_pairs_and_keeps_its_digits() -> None:
    a, b = real(0, 3, 0, 1, -1, -2, 1e-9), real(2, 0, 0, 1, 1, 0, 1e9)
    value = fischer_burmeister(a, b)
    assert value[:3].tolist() == [0, 0, 0]
    assert (value[[3, 6]] > 0).all()
    assert (value[4:6] < 0).all()
    assert value[6] == pytest.approx(1e-9, rel=1e-12)  # 1e9 + 1e-9 − √... is 0 in float64
    for x in (0.0, 1.0, -1.0, torch.inf):
        slope = torch.func.grad(lambda b, x=x: fischer_burmeister(real(x), b).sum())(real(0.0))
        assert slope.isfinite().all()


@pytest.mark.parametrize("high", [torch.inf, 0.3])
def test_affine_problems_are_those_found_by_enumeration(high: float) -> None:
    M, q = p_matrices(12, 4)
    options = {"batch_ndim": 1, "batched": (True, True), "rtol": 1e-12}
    z, info = ti.complementarity(affine, torch.zeros(12, 4, dtype=D), (M, q), -0.1, high, **options)
    assert info.converged.all()
    expected = torch.stack([enumerated(m, v, -0.1, high) for m, v in zip(M, q, strict=True)])
    torch.testing.assert_close(z, expected, rtol=1e-8, atol=1e-9)
    held = (z == -0.1) | (z == high)
    assert 0 < held.sum() < z.numel()  # those at a bound are there exactly


@pytest.mark.parametrize(
    "start", [(0, 0, 0, 0), (1, 0, 1, 0), pytest.param((100, 100, 100, 100), marks=pytest.mark.slow)], ids=str
)
def test_standard_problems_from_their_standard_starts(start: tuple[int, ...]) -> None:
    root = real(1.5**0.5, 0, 0, 0.5)
    z, info = ti.complementarity(josephy, real(*start))
    assert info.converged
    torch.testing.assert_close(z, root, rtol=1e-8, atol=1e-9)
    z, info = ti.complementarity(kojima_shindo, real(*start))
    assert info.converged
    assert any(torch.allclose(z, known, atol=1e-7) for known in (root, real(1, 0, 3, 0)))


def test_without_bounds_it_is_a_root() -> None:
    z, info = ti.complementarity(lambda z: z**3 + z - 1, real(0.5), lower=None)
    assert info.converged
    torch.testing.assert_close(z**3 + z, real(1.0))


@pytest.mark.slow
def test_derivatives_of_both_orders_in_data_and_bounds() -> None:
    M, q = p_matrices(3, 4)
    low, high = real(-0.1, -0.2, -0.1, 0.0), real(0.3, 0.3, 0.4, 0.2)

    def solution(M: Tensor, q: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return ti.complementarity(affine, torch.zeros(3, 4, dtype=D), (M, q), low, high, batch_ndim=1, rtol=1e-12).value

    data = tuple(t.requires_grad_() for t in (M, q, low, high))
    assert torch.autograd.gradcheck(solution, data, fast_mode=True)
    assert torch.autograd.gradgradcheck(solution, data, fast_mode=True)

    def nonlinear(p: Tensor) -> Tensor:
        return ti.complementarity(josephy, torch.ones(4, dtype=D), (p,), rtol=1e-12).value

    p = real(1.1)[0].requires_grad_()
    assert torch.autograd.gradcheck(nonlinear, (p,))
    assert torch.autograd.gradgradcheck(nonlinear, (p,))


def test_transforms() -> None:
    M, q = p_matrices(3, 4)

    def one(M: Tensor, q: Tensor) -> Tensor:
        return ti.complementarity(affine, torch.zeros(4, dtype=D), (M, q), rtol=1e-12).value

    z = torch.vmap(one)(M, q)
    torch.testing.assert_close(z, torch.stack([one(m, v) for m, v in zip(M, q, strict=True)]), rtol=1e-9, atol=1e-12)
    J = torch.vmap(torch.func.jacrev(one, argnums=1))(M, q)
    for m, row, jac in zip(M, z, J, strict=True):
        free = row > 0
        expected = torch.zeros(4, 4, dtype=D)
        index = free.nonzero().flatten()
        expected[index[:, None], index] = -torch.linalg.inv(m[free][:, free])
        torch.testing.assert_close(jac, expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(torch.func.jacfwd(one, argnums=1)(M[0], q[0]), J[0], rtol=1e-8, atol=1e-10)


def test_a_pair_that_is_zero_twice_is_reported_and_its_derivative_is_that_of_one_side() -> None:
    q = real(0.0, -1.0, 1.0).requires_grad_()
    z, info = ti.complementarity(lambda z: z + q, torch.ones(3, dtype=D))
    assert info.converged
    with pytest.warns(ti.ConvergenceWarning, match="degenerate"):
        z.sum().backward()
    assert info.adjoint.status == Status.DEGENERATE
    assert q.grad[0].item() in (0.0, -1.0)  # never a half
    assert q.grad[1:].tolist() == [-1.0, 0.0]
    z, info = ti.complementarity(lambda z: z + q, torch.ones(3, dtype=D))
    with pytest.warns(ti.ConvergenceWarning, match="degenerate"):  # seen from any number of that system
        z[1].backward()
    rows = real(0.0, -1.0, 1.0).unsqueeze(-1).requires_grad_()
    z, info = ti.complementarity(lambda z: z + rows, torch.ones(3, 1, dtype=D), batch_ndim=1)
    z[1:].sum().backward()  # no warning: the degenerate system is not asked
    z, info = ti.complementarity(lambda z: z + rows, torch.ones(3, 1, dtype=D), batch_ndim=1)
    with pytest.warns(ti.ConvergenceWarning, match=r"1 of 3|3 systems"):
        z.sum().backward()
    assert (info.adjoint.status == Status.DEGENERATE).tolist() == [True, False, False]


def test_the_unit_of_F_decides_nothing() -> None:
    M, q = p_matrices(1, 4)
    expected = ti.complementarity(affine, torch.zeros(4, dtype=D), (M[0], q[0])).value
    for unit in (1e-8, 1e8):
        v = (unit * q[0]).requires_grad_()
        z, info = ti.complementarity(affine, torch.zeros(4, dtype=D), (unit * M[0], v))
        assert info.converged
        torch.testing.assert_close(z, expected, rtol=1e-6, atol=1e-8)
        z.sum().backward()
        assert info.adjoint.converged


def carbonate(z: Tensor, log_k: Tensor, total: Tensor, alkalinity: Tensor) -> Tensor:
    """H, OH, CO₂, HCO₃, CO₃ in equilibrium: rows of F, and numbers of z, from 1 to 1e-14."""
    h, oh, c, b, a = z.unbind(-1)
    k1, k2, kw = log_k.exp().unbind(-1)
    return torch.stack(
        [h * b - k1 * c, h * a - k2 * b, h * oh - kw, c + b + a - total, b + 2 * a + oh - h - alkalinity], -1
    )


def carbonate_by_bisection(log_k: Tensor, total: float, alkalinity: float) -> Tensor:
    k1, k2, kw = log_k.exp().tolist()

    def parts(log_h: float) -> tuple[float, ...]:
        h = np.exp(log_h)
        d = h * h + k1 * h + k1 * k2
        return h, kw / h, total * h * h / d, total * k1 * h / d, total * k1 * k2 / d

    def charge(log_h: float) -> float:
        h, oh, _, b, a = parts(log_h)
        return b + 2 * a + oh - h - alkalinity

    return real(*parts(brentq(charge, -36, 1, xtol=1e-14, rtol=1e-14)))


def test_rows_of_F_that_are_small_beside_z_hide_nothing() -> None:
    """z = (0, 2e-13, 3e-14, 1e-3, 0), where every F is below 5e-14 in size but two are negative, was called a solution."""
    log_k = -real(6.35, 10.33, 14) * np.log(10)
    total, alkalinity = real(1e-3, 2e-3, 1e-2, 1e-4, 2e-3, 1e-6), real(5e-4, 2.1e-3, 1.5e-2, 3e-5, 0, 1e-6)
    truth = torch.stack(
        [carbonate_by_bisection(log_k, *pair) for pair in zip(total.tolist(), alkalinity.tolist(), strict=True)]
    )
    start = torch.stack([torch.full_like(total, 1e-7)] * 2 + [total / 3] * 3, -1)
    options = {"batch_ndim": 1, "batched": (False, True, True), "on_failure": "ignore"}
    z, info = ti.complementarity(carbonate, start, (log_k, total, alkalinity), solver="newton", **options)
    near = ((z - truth).abs() <= 1e-7 * truth.amax(-1, keepdim=True)).all(-1)
    assert (near | ~info.converged).all()
    assert near.sum() >= 3
    z, info = ti.complementarity(carbonate, start[0], (log_k, total[0], alkalinity[0]))  # solved, by another method
    assert info.converged
    torch.testing.assert_close(z, truth[0], rtol=1e-6, atol=1e-11)


@pytest.mark.parametrize(
    "solver", [pytest.param(None, marks=pytest.mark.slow), "newton", "active_set", "interior_point"], ids=str
)
def test_rows_of_F_in_other_units_are_solved_as_without_or_not_at_all(solver: str | None) -> None:
    M, q = p_matrices(8, 4)
    expected = torch.stack([enumerated(m, v, 0.0, torch.inf) for m, v in zip(M, q, strict=True)])
    units = 10 ** (28 * torch.rand(8, 4, generator=torch.Generator().manual_seed(1), dtype=D) - 14)
    options = {"solver": solver, "batch_ndim": 1, "batched": (True, True), "on_failure": "ignore"}
    z, info = ti.complementarity(affine, torch.ones(8, 4, dtype=D), (units.unsqueeze(-1) * M, units * q), **options)
    near = ((z - expected).abs() <= 1e-6 * expected.amax(-1, keepdim=True) + 1e-12).all(-1)
    assert (near | ~info.converged).all()
    assert info.converged.sum() >= 4


def test_what_newton_leaves_of_rows_in_other_units_an_active_set_solves() -> None:
    M, q = p_matrices(20, 12)
    units = 10 ** (28 * torch.rand(20, 12, generator=torch.Generator().manual_seed(1), dtype=D) - 14)
    z, info = ti.complementarity(
        affine, torch.ones(20, 12, dtype=D), (units.unsqueeze(-1) * M, units * q), batch_ndim=1
    )
    assert info.converged.all()
    assert info.tried == ("Newton", "ActiveSet")
    assert torch.minimum(z, affine(z, M, q)).abs().max() < 1e-6


@pytest.mark.parametrize("n", [3, 100])  # with the Jacobian, and by its products
def test_a_solver_that_stops_where_a_small_row_of_F_is_not_solved_is_not_believed(n: int) -> None:
    class Believes(Method):
        """Stays at the start, and says that it has arrived."""

        max_steps, patience = 5, 5

        def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, None]:
            return equations.residual(z), None

        def step(self, equations: Equations, z: Tensor, r: Tensor, state: None) -> tuple[Tensor, Tensor, None]:
            return z, equations.residual(z), None

        def estimate(self, z: Tensor, r: Tensor, state: None) -> Estimate:
            return Estimate(torch.zeros_like(z), 0.0)

    units = torch.logspace(-20, 0, n, dtype=D)
    root = torch.linspace(1, 2, n, dtype=D)
    solve = partial(ti.complementarity, lambda z: units * (z - root), solver=Believes(), on_failure="ignore")
    assert solve(root).info.converged
    off = root.clone()
    off[0] += 0.1
    info = solve(off).info
    assert info.status == Status.STAGNATED
    assert 0 < info.error <= 0.1 * (1 + 1e-9)


def test_a_mixed_batch_is_told_system_by_system() -> None:
    q = torch.stack([real(-1.0, 1.0), real(torch.nan, 1.0), real(-2.0, -1.0)])
    with pytest.warns(ti.ConvergenceWarning, match="nonfinite"):
        z, info = ti.complementarity(lambda z: z + q, torch.ones(3, 2, dtype=D), batch_ndim=1)
    assert info.status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]
    torch.testing.assert_close(z[[0, 2]], torch.stack([real(1, 0), real(2, 1)]))
    with pytest.warns(ti.ConvergenceWarning):  # z ≥ 0, F = −1 − z < 0: there is none
        _, info = ti.complementarity(lambda z: -1 - z, real(1.0))
    assert not info.converged


def test_bodies_in_contact() -> None:
    """Three blocks on a slope of springs, pressed on a wall and on each other: the gaps and forces are those of SciPy's nnls."""
    K = torch.tensor([[4.0, -1, 0], [-1, 3, -1], [0, -1, 2]], dtype=D)  # springs
    G = torch.tensor([[1.0, 0, 0], [-1, 1, 0], [0, -1, 1]], dtype=D)  # gaps: block 1 to the wall, 2 to 1, 3 to 2
    gap0 = real(0.1, 0.05, 0.2)

    def gaps(force: Tensor, load: Tensor) -> Tensor:
        u = torch.linalg.solve(K, load + G.T @ force)  # displacements
        return G @ u + gap0

    load = real(-2.0, 1.0, 3.0).requires_grad_()
    force, info = ti.complementarity(gaps, torch.zeros(3, dtype=D), (load,), rtol=1e-12)
    assert info.converged
    L = np.linalg.cholesky((G @ torch.linalg.inv(K) @ G.T).numpy())  # min ½‖Lᵀf + L⁻¹c‖² over f ≥ 0
    c = (gap0 + G @ torch.linalg.solve(K, load.detach())).numpy()
    expected = nnls(L.T, -np.linalg.solve(L, c))[0]
    torch.testing.assert_close(force.detach(), torch.from_numpy(expected), rtol=1e-9, atol=1e-10)
    assert 0 < (force > 0).sum() < 3
    assert torch.autograd.gradcheck(
        lambda load: ti.complementarity(gaps, torch.zeros(3, dtype=D), (load,), rtol=1e-12).value, (load,)
    )


def test_a_game_within_capacities() -> None:
    """Cournot: five firms of cost cᵢq + dᵢq²/2 sell at the price a − Σq; the marginal profit of each is 0, or he is at a limit."""
    cost, bend = real(1.0, 2, 3, 6, 9), real(0.5, 0.4, 0.3, 0.2, 0.1)
    capacity = real(1.0, 5, 5, 5, 5)

    def marginal_loss(q: Tensor, a: Tensor) -> Tensor:
        return cost + bend * q - (a - q.sum(-1, keepdim=True)) + q

    a = real(8.0)
    q, info = ti.complementarity(marginal_loss, torch.ones(5, dtype=D), (a,), 0.0, capacity, rtol=1e-12)
    assert info.converged
    loss = marginal_loss(q, a)
    at_most, at_least = q == capacity, q == 0
    assert at_most.tolist() == [True, False, False, False, False]
    assert at_least.tolist() == [False, False, False, True, True]
    assert (loss[at_most] < 0).all()
    assert (loss[at_least] > 0).all()
    assert loss[1:3].abs().max() < 1e-11
    for i in range(5):  # no firm gains by another choice
        profit = lambda own: own * (a - q.sum() + q[i] - own) - cost[i] * own - bend[i] * own**2 / 2  # noqa: B023, E731
        others = torch.linspace(0, float(capacity[i]), 101, dtype=D)
        assert profit(others).max() <= profit(q[i]) + 1e-12


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="one number of F for each unknown"):
        ti.complementarity(lambda z: z[:2], torch.ones(3, dtype=D))
    with pytest.raises(ValueError, match="lies above"):
        ti.complementarity(lambda z: z, torch.ones(3, dtype=D), lower=1.0, upper=0.0)
    with pytest.raises(TypeError, match="goes downhill"):
        ti.complementarity(lambda z: z, torch.ones(3, dtype=D), solver="projected_newton")
