"""The Gauss–Newton gradient: (JᵀJ)⁻¹Jᵀ by hand, the exact gradient where the residuals vanish, and what has none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import torchimplicit as ti

D = torch.float64
T = torch.linspace(0, 2, 20, dtype=D)
TRUE = torch.tensor([2.0, 1.3, 0.5], dtype=D)
V = torch.tensor([1.0, -2.0, 3.0], dtype=D)


def model(z: Tensor, s: Tensor | float = 1.0) -> Tensor:
    a, b, c = z.unsqueeze(-1).unbind(-2)
    return a * torch.exp(-b * s * T) + c


def observations(noise: float) -> Tensor:
    return model(TRUE) + noise * torch.randn(20, dtype=D, generator=torch.Generator().manual_seed(0))


def fit(y: Tensor, s: Tensor | float = 1.0, **options: object) -> Tensor:
    z: Tensor = ti.least_squares(lambda z: model(z, s) - y, torch.ones_like(TRUE), rtol=1e-12, **options).value
    return z


def pullback(adjoint: object, y: Tensor, s: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(fit(y, s, adjoint=adjoint) @ V, (y, s))


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_it_is_the_pseudoinverse_of_the_jacobian(noise: float) -> None:
    y, s = observations(noise).requires_grad_(), torch.tensor(1.1, dtype=D, requires_grad=True)
    z = fit(y.detach(), 1.1)
    J, by_s = torch.func.jacrev(model, argnums=(0, 1))(z, s.detach())
    inverse = torch.linalg.solve(J.T @ J, J.T)
    found = pullback(ti.GaussNewton(), y, s)
    assert torch.allclose(found[0], inverse.T @ V, rtol=1e-8)
    assert torch.allclose(found[1], -V @ inverse @ by_s, rtol=1e-8)


def test_it_is_exact_where_the_residuals_vanish_and_only_there() -> None:
    s = torch.tensor(1.0, dtype=D, requires_grad=True)
    for noise, equal in ((0.0, True), (0.1, False)):
        y = observations(noise).requires_grad_()
        approximate, exact = pullback(ti.GaussNewton(), y, s), pullback(ti.Implicit(), y, s)
        assert all(torch.allclose(p, q, rtol=1e-6) for p, q in zip(approximate, exact, strict=True)) == equal


def test_the_value_is_that_of_the_solve_and_transforms_see_the_same_gradient() -> None:
    y = observations(0.1)
    assert torch.equal(fit(y.clone().requires_grad_(), adjoint=ti.GaussNewton()), fit(y))

    def of_y(y: Tensor) -> Tensor:
        return fit(y, adjoint=ti.GaussNewton()) @ V

    expected = pullback(ti.GaussNewton(), y.clone().requires_grad_(), torch.tensor(1.0, dtype=D, requires_grad=True))[0]
    assert torch.allclose(torch.func.grad(of_y)(y), expected, rtol=1e-9)
    together = torch.func.vmap(torch.func.grad(of_y))(torch.stack([observations(0.0), y]))
    assert torch.allclose(together[1], expected, rtol=1e-9)
    direction = torch.cos(T)
    _, pushed = torch.func.jvp(of_y, (y,), (direction,))
    assert torch.allclose(pushed, expected @ direction, rtol=1e-9)


def test_a_system_without_full_rank_is_told_and_does_not_disturb_its_neighbour() -> None:
    y = torch.stack([observations(0.1), observations(0.1)]).requires_grad_()
    weight = torch.tensor([[1.0], [0.0]], dtype=D)  # the second system does not depend on its third unknown

    def r(z: Tensor) -> Tensor:
        a, b, c = z.unsqueeze(-1).unbind(-2)
        return a * torch.exp(-b * T) + weight * c - y

    start, adjoint = torch.ones(2, 3, dtype=D), ti.GaussNewton()
    with pytest.warns(ti.ConvergenceWarning, match="1 of 2 systems"):
        z, info = ti.least_squares(r, start, batch_ndim=1, rtol=1e-10, adjoint=adjoint)
    assert info.status.tolist() == [ti.Status.CONVERGED, ti.Status.SINGULAR]
    (found,) = torch.autograd.grad((z * V).sum(), y)
    alone = observations(0.1).requires_grad_()
    (expected,) = torch.autograd.grad(fit(alone, adjoint=adjoint) @ V, alone)
    assert torch.allclose(found[0], expected, rtol=1e-6)
    assert (found[1] == 0).all()
    z = ti.least_squares(r, start, batch_ndim=1, rtol=1e-10, adjoint=adjoint, on_failure="nan").value
    assert z.isfinite().all(-1).tolist() == [True, False]
    with torch.no_grad():  # where no derivative is asked for, nothing is wrong
        z = ti.least_squares(r, start, batch_ndim=1, rtol=1e-10, adjoint=adjoint, on_failure="raise").value
    assert z.isfinite().all()


def test_other_problems_and_bounds_are_refused() -> None:
    with pytest.raises(TypeError, match="without bounds"):
        fit(observations(0.1), bounds=(0, None), adjoint=ti.GaussNewton())
    with pytest.raises(TypeError, match="least-squares fit"):
        ti.root(lambda z: z - 1, torch.zeros(2), adjoint=ti.GaussNewton())
