"""What Levenberg–Marquardt and Gauss–Newton promise: units do not matter, rows do not mix, rank and domain may be missing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.linear.triangularise import CACHED, solve_triangle, triangularise

D = torch.float64
METHODS = {
    "levenberg_marquardt": ti.solvers.LevenbergMarquardt(),
    "geodesic": ti.solvers.LevenbergMarquardt(geodesic=True),
    "gauss_newton": ti.solvers.GaussNewton(),
    "dogleg": ti.solvers.Dogleg(),
}
T = torch.linspace(0, 4, 40, dtype=D)


@pytest.fixture(params=METHODS)
def solver(request: pytest.FixtureRequest) -> object:
    return METHODS[request.param]


def model(z: Tensor) -> Tensor:
    a, b, c = z[..., None].unbind(-2)
    return a * torch.exp(-b * T.to(z.dtype)) + c


def series(count: int) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    z = 0.5 + 2 * torch.rand(count, 3, dtype=D, generator=draw)
    return model(z) + 0.05 * torch.randn(count, 40, dtype=D, generator=draw)


def r(z: Tensor, y: Tensor) -> Tensor:
    return model(z) - y


@pytest.mark.parametrize("shape", [(7, 3), (3, 3), (40, 8), (40, 9), (12, 20), (2, 5), (5, 12)])
def test_a_triangle_has_the_least_squares_solution_and_the_norms_of_the_matrix(shape: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(0)
    A = torch.randn(4, *shape, dtype=D, generator=draw) * torch.logspace(-6, 6, shape[1], dtype=D)
    b = torch.randn(4, shape[0], dtype=D, generator=draw)
    R, c = triangularise(A, b)
    assert torch.equal(R, R.triu())
    size = torch.linalg.vector_norm(A, dim=-2)
    scaled = (R.mT @ R) / size.unsqueeze(-1) / size.unsqueeze(-2)
    assert torch.allclose(scaled, (A.mT @ A) / size.unsqueeze(-1) / size.unsqueeze(-2), atol=1e-14)
    if shape[0] >= shape[1]:
        x = torch.linalg.lstsq(A / size.unsqueeze(-2), b.unsqueeze(-1)).solution.squeeze(-1)
        assert torch.allclose(solve_triangle(R, c) * size, x, rtol=1e-9, atol=1e-12)
        w = solve_triangle(R, c, transposed=True).unsqueeze(-1)
        level = (R.mT.abs() @ w.abs()).squeeze(-1)
        assert ((R.mT @ w).squeeze(-1) - c).abs().le(1e-14 * shape[1] * level).all()


def test_a_batch_larger_than_the_cache_gives_the_triangles_of_its_parts() -> None:
    draw = torch.Generator().manual_seed(0)
    A, b = torch.randn(2000, 40, 4, dtype=D, generator=draw), torch.randn(2000, 40, dtype=D, generator=draw)
    assert A.numel() > 2 * CACHED
    R, c = triangularise(A, b)
    for some in (slice(0, 7), slice(1000, 1007), slice(1993, 2000)):
        R_some, c_some = triangularise(A[some], b[some])
        assert torch.allclose(R[some], R_some, rtol=1e-13, atol=1e-13)
        assert torch.allclose(c[some], c_some, rtol=1e-13, atol=1e-13)


def test_an_ill_conditioned_fit_keeps_the_digits_that_normal_equations_lose(solver: object) -> None:
    e = 1e-9  # Läuchli's matrix: JᵀJ is singular to working precision
    A = torch.tensor([[1, 1, 1], [e, 0, 0], [0, e, 0], [0, 0, e]], dtype=D)
    b = A @ torch.tensor([1.0, 2.0, 3.0], dtype=D)
    z = ti.least_squares(lambda z: A @ z - b, torch.zeros(3, dtype=D), solver=solver, on_failure="ignore").value
    assert torch.allclose(z, torch.tensor([1.0, 2.0, 3.0], dtype=D), atol=1e-5)


def test_units_of_residuals_and_unknowns_change_nothing(solver: object) -> None:
    y, start = series(1)[0], torch.ones(3, dtype=D)
    units = torch.tensor([1e7, 1e-5, 1e3], dtype=D)

    def of_leaves(z: list[Tensor], y: Tensor) -> Tensor:
        return r(torch.stack(z), y)

    plain, info = ti.least_squares(of_leaves, list(start), (y,), solver=solver)
    scaled, other = ti.least_squares(
        lambda z, y: 1e-9 * of_leaves([a / unit for a, unit in zip(z, units, strict=True)], y),
        list(start * units),
        (y,),
        solver=solver,
    )
    assert info.converged
    assert other.converged
    assert info.steps == other.steps
    assert torch.allclose(torch.stack(scaled) / units, torch.stack(plain), rtol=1e-8)


@pytest.mark.parametrize(("dtype", "huge"), [(torch.float32, 1e6), (D, 1e12)])
def test_a_huge_residual_hides_nothing_of_the_others(solver: object, dtype: torch.dtype, huge: float) -> None:
    """Beside ‖r‖ all that depends on z₁ is small, wherever z is. Both unknowns are cube roots of means."""
    small, large = (torch.tensor(y, dtype=dtype) for y in ([7.0, 9.0, 8.0, 6.0, 10.0], [10.0, 44.0]))

    def g(z: Tensor) -> Tensor:
        return torch.cat([z[:1] ** 3 - small, huge * (z[1:] ** 3 - large), torch.full_like(z[:1], huge)])

    z, info = ti.least_squares(g, torch.tensor([3.0, 3.5], dtype=dtype), solver=solver)
    assert info.converged
    assert torch.allclose(z, torch.tensor([2.0, 3.0], dtype=dtype), rtol=3 * torch.finfo(dtype).eps ** 0.5)


@pytest.mark.sampled(4)
def test_a_batch_whose_rows_are_known_is_fitted_as_one_by_one(solver: object) -> None:
    """With more systems than are worth gathering out, one in NaN, and one from a start at its solution."""
    y, start = series(300), torch.ones(300, 3, dtype=D)
    y[7] = torch.nan
    start[11] = ti.least_squares(r, start[11], (y[11],), rtol=1e-11).value
    y.requires_grad_()
    known = ti.least_squares(r, start, (y,), solver=solver, batch_ndim=1, batched=(True,), on_failure="ignore")
    together = ti.least_squares(r, start, (y,), solver=solver, batch_ndim=1, on_failure="ignore")
    assert torch.equal(known.info.status, together.info.status)
    assert (known.info.steps - together.info.steps).abs().max() <= 1
    assert known.info.evaluations <= together.info.evaluations
    assert known.info.steps[11] == 0
    good = known.info.converged
    assert good.sum() >= 295
    assert torch.allclose(known.value[good], together.value[good], rtol=1e-6, atol=1e-9)
    for i in (0, 7, 11, 150, 299):
        alone = ti.least_squares(r, start[i], (y[i],), solver=solver, on_failure="ignore")
        assert known.info.status[i] == alone.info.status
        assert abs(int(known.info.steps[i]) - int(alone.info.steps)) <= 1
    v = torch.randn(300, 3, dtype=D, generator=torch.Generator().manual_seed(0)) * good.unsqueeze(-1)
    gradients = [
        torch.autograd.grad((torch.where(good.unsqueeze(-1), z, 0) * v).sum(), y)[0][good]
        for z in (known.value, together.value)
    ]
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("raises", [False, True])
def test_a_step_out_of_the_domain_is_not_taken(solver: object, raises: bool) -> None:
    def g(z: Tensor) -> Tensor:  # the first full steps lead to log of negative numbers
        if raises and bool((z < 0).any()):
            raise ValueError("negative")
        return torch.log(z) - torch.tensor([[0.5], [-3.0]], dtype=D)

    z, info = ti.root(g, torch.tensor([[8.0], [9.0]], dtype=D), solver=solver, batch_ndim=1)
    assert info.converged.all()
    assert torch.allclose(z, torch.tensor([[0.5], [-3.0]], dtype=D).exp())


@pytest.mark.parametrize("method", ["levenberg_marquardt", "gauss_newton"])
def test_without_full_rank_some_fit_is_found(method: str) -> None:
    A = torch.tensor([[1.0, 2, 3], [2, 4, 6], [1, 2, 3.0]], dtype=D)
    b = torch.tensor([1.0, -1, 2], dtype=D)
    z, info = ti.least_squares(lambda z: A @ z - b, torch.ones(3, dtype=D), solver=method)
    assert info.converged
    assert torch.allclose(A.T @ (A @ z - b), torch.zeros(3, dtype=D), atol=1e-6)


def test_fewer_residuals_than_unknowns(solver: object) -> None:
    z, info = ti.least_squares(lambda z: z[:1] ** 2 + z[1:2] - 2, torch.tensor([1.5, 3.0], dtype=D), solver=solver)
    assert info.converged
    assert abs(float(z[0] ** 2 + z[1] - 2)) < 1e-8


def test_single_precision(solver: object) -> None:
    y = series(5).float()
    z, info = ti.least_squares(r, torch.ones(5, 3), (y,), solver=solver, batch_ndim=1)
    assert info.converged.all()
    exact = ti.least_squares(r, torch.ones(5, 3, dtype=D), (y.double(),), batch_ndim=1).value
    assert torch.allclose(z.double(), exact, rtol=1e-3)


@pytest.mark.sampled(3)
def test_unrolled_steps_give_the_gradient_too(solver: object) -> None:
    y = series(1)[0].requires_grad_()
    start = torch.ones(3, dtype=D)
    implicit = ti.least_squares(r, start, (y,), rtol=1e-12).value
    unrolled = ti.least_squares(r, start, (y,), solver=solver, adjoint=ti.Unrolled(steps=30)).value
    v = torch.tensor([1.0, -2.0, 3.0], dtype=D)
    (expected,) = torch.autograd.grad(implicit @ v, y)
    (found,) = torch.autograd.grad(unrolled @ v, y)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_bounds_are_left_to_methods_that_keep_them(solver: object) -> None:
    with pytest.raises(TypeError, match="projected_newton"):
        ti.least_squares(r, torch.ones(3, dtype=D), (series(1)[0],), bounds=(0, None), solver=solver)


def test_an_objective_is_no_sum_of_squares(solver: object) -> None:
    with pytest.raises(TypeError, match="sum of squares"):
        ti.minimize(lambda z: (z**2).sum(), torch.ones(2), solver=solver)


@pytest.mark.parametrize("method", ["levenberg_marquardt", "gauss_newton", "lbfgs"])
def test_the_backward_solves_with_the_hessian_that_was_looked_at_in_the_end(method: str) -> None:
    y, start = series(20).requires_grad_(), torch.ones(20, 3, dtype=D)
    z, info = ti.least_squares(r, start, (y,), solver=method, batch_ndim=1)
    z.sum().backward()
    assert info.converged.all()
    assert info.adjoint is not None
    assert info.adjoint.converged.all()
    # That which checks the solution, and one more, for z was moved since; the Hessian anew would be three more.
    assert info.adjoint.products <= 2
