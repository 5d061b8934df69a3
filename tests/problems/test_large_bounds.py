"""Large systems within bounds, with M-matrices: what meets the conditions is the one solution. Which unknowns are free once known,
the derivative is that of a linear system of SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import diags_array, eye_array, kron
from scipy.sparse.linalg import spsolve
from torch import Tensor
from torch.nn.functional import pad

import torchimplicit as ti
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.large import Large
from torchimplicit.linear.masked import Masked

D = torch.float64


def line(z: Tensor) -> Tensor:
    return 2 * z - pad(z, (1, 0))[:-1] - pad(z, (0, 1))[1:]


def plane(z: Tensor) -> Tensor:
    p = pad(z, (1, 1, 1, 1))
    return 4 * z - p[2:, 1:-1] - p[:-2, 1:-1] - p[1:-1, 2:] - p[1:-1, :-2]


def points(m: int) -> Tensor:
    return torch.arange(1, m + 1, dtype=D) / (m + 1)


def check(z: Tensor, F: Tensor, lower: Tensor, upper: Tensor, unit: float) -> None:
    """The conditions, to rounding: F is 0 between the bounds, and presses z against the one at which it is."""
    assert ((lower <= z) & (z <= upper)).all()
    F = F / unit
    at_lower, at_upper = z == lower, z == upper
    assert 0 < (at_lower | at_upper).sum() < z.numel()
    assert F[~at_lower & ~at_upper].abs().max() < 1e-9
    assert (F[at_lower & ~at_upper] > -1e-9).all()
    assert (F[at_upper & ~at_lower] < 1e-9).all()


@pytest.mark.parametrize("n", [150, 400, 4000])
def test_an_obstacle_under_a_string_takes_as_many_steps_on_every_mesh(n: int) -> None:
    x = points(n)
    obstacle = 0.2 * (x - 0.5).abs() - 0.2 - 0.05 * torch.sin(9 * x)
    h = 1 / (n + 1)
    z, info = ti.complementarity(
        lambda z: line(z) / h**2 + 8, torch.zeros(n, dtype=D), lower=obstacle, rtol=1e-12, on_failure="raise"
    )
    assert info.steps <= 25
    check(z, line(z) / h**2 + 8, obstacle, torch.full_like(z, torch.inf), h**-2)


def test_torsion_of_a_bar_that_yields_and_its_derivative() -> None:
    m = 24
    x = points(m)
    side = torch.minimum(x, 1 - x)
    distance = torch.minimum(side[:, None], side[None])
    h = 1 / (m + 1)
    twist = torch.full((m, m), 10.0, dtype=D, requires_grad=True)

    def force(z: Tensor, twist: Tensor) -> Tensor:
        return plane(z) - h**2 * twist

    z, info = ti.complementarity(
        force, torch.zeros(m, m, dtype=D), (twist,), -distance, distance, rtol=1e-12, on_failure="raise"
    )
    assert info.steps <= 25
    check(z.detach(), force(z, twist).detach(), -distance, distance, 1.0)
    (found,) = torch.autograd.grad((z * distance).sum(), twist)
    L = diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(m, m))
    A = (kron(L, eye_array(m)) + kron(eye_array(m), L)).tocsr()
    free = ((z > -distance) & (z < distance)).flatten().nonzero().flatten().numpy()
    expected = np.zeros(m * m)
    expected[free] = spsolve(A[free][:, free].tocsc(), distance.flatten().numpy()[free]) * h**2
    np.testing.assert_allclose(found.flatten().numpy(), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("n", [400, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_minimum_above_an_obstacle_holds_nothing_that_is_only_near(n: int) -> None:
    """Beside the contact the string leaves the obstacle as a parabola does: with 4e-5 at the first point of 400."""
    obstacle = 0.5 - 8 * (points(n) - 0.5) ** 2
    z, _ = ti.minimize(
        lambda z: (z * line(z)).sum() / 2, torch.zeros(n, dtype=D), bounds=(obstacle, None), on_failure="raise"
    )
    check(z, line(z), obstacle, torch.full_like(z, torch.inf), 1.0)


def test_a_minimum_with_many_unknowns_takes_steps_by_factors() -> None:
    m = 40
    x = points(m)
    obstacle = 0.3 - 4 * ((x[:, None] - 0.5) ** 2 + (x[None] - 0.5) ** 2)
    z, info = ti.minimize(
        lambda z: (z * plane(z)).sum() / 2, torch.zeros(m, m, dtype=D), bounds=(obstacle, None), on_failure="raise"
    )
    assert info.steps <= 15
    assert info.products <= 400
    check(z, plane(z), obstacle, torch.full_like(z, torch.inf), 1.0)


@pytest.mark.parametrize("name", ["active_set", "interior_point"])
def test_by_name(name: str) -> None:
    rng = torch.Generator().manual_seed(0)
    S = torch.randn(5, 9, 9, generator=rng, dtype=D)
    M, q = S @ S.mT / 9 + torch.eye(9, dtype=D) + (S - S.mT), torch.randn(5, 9, generator=rng, dtype=D)

    def F(z: Tensor) -> Tensor:
        return (M @ z.unsqueeze(-1)).squeeze(-1) + q

    z, info = ti.complementarity(F, torch.zeros(5, 9, dtype=D), lower=-0.2, upper=0.1, batch_ndim=1, solver=name)
    assert info.converged.all()
    again, info = ti.complementarity(F, z, lower=-0.2, upper=0.1, batch_ndim=1, solver=name)
    assert (info.steps <= 1).all()  # a start that is the solution
    torch.testing.assert_close(again, z)
    check(z, F(z), torch.full_like(z, -0.2), torch.full_like(z, 0.1), 1e3)
    with pytest.raises(TypeError, match="bounds"):
        ti.root(lambda z: z**3 - 1, torch.ones(3, dtype=D), solver=name)


@pytest.mark.slow
def test_a_long_valley_is_followed_to_its_end() -> None:
    """Rosenbrock's, chained, of 400 unknowns: some 1,400 steps."""
    z, _ = ti.least_squares(
        lambda z: torch.cat([10 * (z[1:] - z[:-1] ** 2), 1 - z[:-1]]),
        torch.tensor([-1.2, 1.0], dtype=D).repeat(200),
        on_failure="raise",
    )
    torch.testing.assert_close(z, torch.ones(400, dtype=D))


def test_second_derivatives_know_that_the_whole_jacobian_is_not_symmetric() -> None:
    """That of the free unknowns, J_ff, is. The derivative in a stiffness on its diagonal, twice."""
    n = 300
    obstacle = 0.5 - 8 * (points(n) - 0.5) ** 2
    k = torch.tensor(1e-4, dtype=D, requires_grad=True)
    weight = torch.cos(11 * points(n))

    def total(k: Tensor) -> Tensor:
        z, _ = ti.complementarity(
            lambda z, k: line(z) + k * z - 1e-4, torch.zeros(n, dtype=D), (k,), lower=obstacle, rtol=1e-11
        )
        return (z * weight).sum()

    (first,) = torch.autograd.grad(total(k), k, create_graph=True)
    (second,) = torch.autograd.grad(first, k)
    z, _ = ti.complementarity(
        lambda z: line(z) + k.detach() * z - 1e-4, torch.zeros(n, dtype=D), lower=obstacle, rtol=1e-11
    )
    free = (z > obstacle).nonzero().flatten()
    J = (torch.func.jacrev(line)(z) + k.detach() * torch.eye(n, dtype=D))[free][:, free]
    dz = -torch.linalg.solve(J, z[free])
    torch.testing.assert_close(first.detach(), (weight[free] * dz).sum(), rtol=1e-8, atol=0)
    torch.testing.assert_close(second, (weight[free] * -2 * torch.linalg.solve(J, dz)).sum(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("adjoint", [False, True])
def test_what_is_learnt_of_the_free_unknowns_is_not_believed_of_all(adjoint: bool) -> None:
    """A matrix whose free part is symmetric, and which is not."""
    n = 120
    held = torch.arange(n).remainder(3).eq(0).unsqueeze(0)

    def g(z: Tensor) -> Tensor:
        return torch.where(
            held, 0.3 * z, 1.5 * z.roll(1, -1) * held.roll(1, -1) + 4 * z + z.roll(1, -1) + z.roll(-1, -1)
        )

    J = Jacobian(g, torch.zeros(1, n, dtype=D), memory=ti.linear.Memory())
    A = J.to_dense()[0]
    assert not torch.equal(A, A.mT)
    b = torch.cos(torch.arange(n, dtype=D)).unsqueeze(0)
    free = Large().factorize(Masked(J, held, torch.ones(1, dtype=D))).iterate(b, rtol=1e-12)
    assert free.converged.all()
    found = Large().factorize(J).iterate(b, adjoint, rtol=1e-12)
    assert found.converged.all()
    torch.testing.assert_close(found.x[0], torch.linalg.solve(A.mT if adjoint else A, b[0]), rtol=1e-9, atol=1e-11)
