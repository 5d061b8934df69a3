"""Every datum of quadratic programs, cone programs and minima under constraints, under every transform: against the written-out linear
systems, or plain Newton steps, of their optimality conditions, which autograd differentiates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from tests.programs.random_programs import D, known
from torchimplicit import Cones, Constraints

DATA = ("Q", "p", "G", "h", "A", "b", "lower", "upper")
HELD = 2  # inequalities; then z₀ is at its lower bound, and z₁ at its upper


def program() -> dict[str, Tensor]:
    """Two inequalities, an equality, a lower and an upper bound hold z of six; three more inequalities and ten bounds do not."""
    data, (z,), *_ = known(1, 6, 5, 1, held=HELD)
    Q, p, G, h, A, b = (t[0] for t in data)
    force = torch.zeros(6, dtype=D)
    force[0], force[1] = -0.7, 0.4
    lower, upper = z - 0.5, z + 0.3
    lower[0], upper[1] = z[0], z[1]
    return {"Q": Q, "p": p - force, "G": G, "h": h, "A": A, "b": b, "lower": lower, "upper": upper}


def solved(data: dict[str, Tensor]) -> Tensor:
    """z and all multipliers, in one vector."""
    z, info = ti.quadratic_program(**data)
    return torch.cat([z, *info.dual], -1)


def written_out(data: dict[str, Tensor]) -> Tensor:
    """The same by one linear system, for the constraints that are known to hold z: autograd knows how to differentiate it."""
    Q, p, G, h, A, b, lower, upper = (data[name] for name in DATA)
    eye = torch.eye(6, dtype=D)
    C = torch.cat([G[:HELD], A, eye[:2]])
    right = torch.cat([-p, h[:HELD], b, lower[:1], upper[1:2]])
    k = len(C)
    K = torch.cat([torch.cat([(Q + Q.mT) / 2, C.mT], 1), torch.cat([C, torch.zeros(k, k, dtype=D)], 1)])
    z, inequality, equality, bounds = torch.linalg.solve(K, right).split([6, HELD, 1, 2])
    return torch.cat([z, inequality, torch.zeros(3, dtype=D), equality, bounds, torch.zeros(4, dtype=D)])


def agrees(
    found: Callable[[Tensor], Tensor], exact: Callable[[Tensor], Tensor], at: Tensor, hessian: bool = True
) -> None:
    """vmap, jacrev (and over vmap) and the Hessian of a loss are those of ``exact``; at points beside ``at`` too."""
    noise = torch.randn(2, *at.shape, dtype=D, generator=torch.Generator().manual_seed(1))
    points = torch.stack([at, *(at + 1e-3 * noise)])
    close: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-7}
    torch.testing.assert_close(torch.vmap(found)(points), torch.stack([exact(x) for x in points]), **close)
    slopes = torch.stack([torch.func.jacrev(exact)(x) for x in points])
    torch.testing.assert_close(torch.vmap(torch.func.jacrev(found))(points), slopes, **close)
    torch.testing.assert_close(torch.func.jacrev(found)(at), slopes[0], **close)
    bend, wanted = (torch.func.hessian(lambda x, f=f: (weights(f(x)) * f(x).pow(2)).sum())(at) for f in (found, exact))
    torch.testing.assert_close(bend, wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))


def weights(v: Tensor) -> Tensor:
    return torch.cos(torch.arange(v.shape[-1], dtype=D))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", DATA)
def test_of_a_quadratic_program(name: str) -> None:
    data = program()
    torch.testing.assert_close(solved(data), written_out(data))
    agrees(lambda x: solved({**data, name: x}), lambda x: written_out({**data, name: x}), data[name])


def newton(conditions: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
    """The root beside w, by plain steps: each doubles how many of its derivatives are exact."""
    for _ in range(5):
        w = w - torch.linalg.solve(torch.func.jacrev(conditions)(w), conditions(w))
    return w


CONES = Cones(zero=1, nonnegative=2, second_order=[3])
ALONG = torch.tensor([1, -1, -1], dtype=D)


def cone_program() -> tuple[dict[str, Tensor], Tensor]:
    """An equality, an inequality and the boundary of a second-order cone hold z of five; and z, the first multipliers, and m."""
    generator = torch.Generator().manual_seed(0)
    A, L = torch.randn(6, 5, dtype=D, generator=generator), torch.randn(5, 5, dtype=D, generator=generator)
    z, P = torch.randn(5, dtype=D, generator=generator), L @ L.mT + torch.eye(5, dtype=D)
    s, w = torch.tensor([0, 0, 0.8, 5, 3, 4], dtype=D), torch.tensor([0.7, 0.6, 0.2], dtype=D)
    return {"P": P, "q": -P @ z - A.mT @ multipliers(w, s), "A": A, "b": A @ z + s}, torch.cat([z, w])


def multipliers(w: Tensor, s: Tensor) -> Tensor:
    """On the boundary y is a multiple of the slope of s₀² − ‖s̄‖²."""
    return torch.cat([w[:2], torch.zeros(1, dtype=D), w[2] * ALONG * s[3:]])


def conic(data: dict[str, Tensor]) -> Tensor:
    z, info = ti.cone_program(**data, cones=CONES)
    return torch.cat([z, info.dual], -1)


def conic_by_newton(data: dict[str, Tensor], beside: Tensor) -> Tensor:
    P, q, A, b = data["P"], data["q"], data["A"], data["b"]

    def conditions(w: Tensor) -> Tensor:
        z, s = w[:5], b - A @ w[:5]
        return torch.cat(
            [(P + P.mT) @ z / 2 + q + A.mT @ multipliers(w[5:], s), s[:2], (ALONG * s[3:].square()).sum().reshape(1)]
        )

    w = newton(conditions, beside)
    return torch.cat([w[:5], multipliers(w[5:], b - A @ w[:5])])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["P", "q", "A", "b"])
def test_of_a_cone_program(name: str) -> None:
    pytest.importorskip("clarabel", reason="the extra cone is not installed")
    data, beside = cone_program()
    torch.testing.assert_close(conic(data), conic_by_newton(data, beside))
    agrees(lambda x: conic({**data, name: x}), lambda x: conic_by_newton({**data, name: x}, beside), data[name])


OF_PHI, OF_C, OF_H = (torch.tensor(v, dtype=D) for v in ([1.0, 2.0, -0.5], [0.8, 1.1, 0.9], [0.7, 1.3, 0.4]))


def phi(z: Tensor, a: Tensor) -> Tensor:
    return ((z - a) ** 2).sum() / 2 + (a * z**4).sum() / 10


def c(z: Tensor, b: Tensor) -> Tensor:
    return (b * z).sum().reshape(1) + (b * z * z).sum().reshape(1) / 10 - 1


def h(z: Tensor, d: Tensor) -> Tensor:
    """The first holds the minimum, the second does not."""
    return torch.stack([z[1] * d[1] + z[0] * z[1] - d[0], -z[0] - 10 * d[2]])


def constrained(a: Tensor, b: Tensor, d: Tensor) -> Tensor:
    constraints = Constraints(equal=lambda z, a, b, d: c(z, b), at_most=lambda z, a, b, d: h(z, d))
    z, info = ti.minimize(
        lambda z, a, b, d: phi(z, a), torch.ones(3, dtype=D), (a, b, d), constraints=constraints, rtol=1e-12
    )
    return torch.cat([z, info.dual.equality, info.dual.inequality])


def constrained_by_newton(a: Tensor, b: Tensor, d: Tensor, beside: Tensor) -> Tensor:
    def lagrangian(w: Tensor) -> Tensor:
        return phi(w[:3], a) + w[3] * c(w[:3], b)[0] + w[4] * h(w[:3], d)[0]

    return torch.cat([newton(torch.func.grad(lagrangian), beside), torch.zeros(1, dtype=D)])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("of", ["phi", "c", "h"])
def test_of_a_minimum_under_constraints(of: str) -> None:
    data = [OF_PHI, OF_C, OF_H]
    found = constrained(*data)
    beside = found[:5]
    assert beside[4] > 0.1
    assert found[5] == 0
    at = ["phi", "c", "h"].index(of)

    def with_datum(x: Tensor) -> list[Tensor]:
        return [x if k == at else t for k, t in enumerate(data)]

    agrees(lambda x: constrained(*with_datum(x)), lambda x: constrained_by_newton(*with_datum(x), beside), data[at])
