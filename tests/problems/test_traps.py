"""Unfriendly equations with the default solver, many in one batch: none spoils the others, and each is solved as if alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

import torchimplicit as ti

D = torch.float64
SQUARE_ROOT = ((-1 + math.sqrt(1 + 4e-3)) / 2e-3) ** 2  # √z is the positive root of s²/1000 + s − 1

# Name, function, start and root of scalar equations.
SCALAR: list[tuple[str, Callable[[Tensor], Tensor], float, float]] = [
    ("easy", lambda z: z**3 + z - 2, 0.5, 1.0),
    ("arctan: Newton's steps grow", torch.atan, 5.0, 0.0),
    ("arctan, farther", torch.atan, -300.0, 0.0),
    ("Newton cycles between 0 and 1", lambda z: z**3 - 2 * z + 2, 0.0, -1.7692923542386314),
    ("the same with the other sign", lambda z: 2 * z - z**3 - 2, 0.0, -1.7692923542386314),
    ("exp overflows after a step", lambda z: torch.exp(z) - 1, -9.0, 0.0),
    ("exp overflows far away", lambda z: torch.exp(z) - 1, -20.0, 0.0),
    ("exp from above", lambda z: torch.exp(z) - 1, 40.0, 0.0),
    ("log of a negative number", torch.log, 20.0, 1.0),
    ("log of a very negative number", torch.log, 1e4, 1.0),
    ("a square root out of its domain", lambda z: torch.sqrt(z) - 1 + z / 1e3, 1e4, SQUARE_ROOT),
    ("a zero derivative at the start", lambda z: z**2 - 1, 0.0, 1.0),
]


def all_scalars(z: Tensor) -> Tensor:
    return torch.stack([g(z[i]) for i, (_, g, _, _) in enumerate(SCALAR)])


def test_scalar_traps_in_one_batch() -> None:
    start = torch.tensor([start for _, _, start, _ in SCALAR], dtype=D)
    z, info = ti.root(all_scalars, start, batch_ndim=1, rtol=0.0, atol=1e-9)
    exact = torch.tensor([root for _, _, _, root in SCALAR], dtype=D)
    z = torch.cat([z[:-1], z[-1:].abs()])  # either sign solves the last
    torch.testing.assert_close(z, exact, rtol=1e-7, atol=1e-8)
    assert info.converged.all()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("trap", SCALAR, ids=lambda trap: trap[0])
def test_a_scalar_trap_alone_is_solved_as_in_the_batch(
    trap: tuple[str, Callable[[Tensor], Tensor], float, float],
) -> None:
    k = SCALAR.index(trap)
    start = torch.tensor([start for _, _, start, _ in SCALAR], dtype=D)
    together, info = ti.root(all_scalars, start, batch_ndim=1, rtol=0.0, atol=1e-9)
    alone, its = ti.root(trap[1], start[k], rtol=0.0, atol=1e-9)
    assert torch.allclose(alone, together[k], rtol=1e-9, atol=1e-9)
    assert info.solved_by is not None
    assert its.solved_by is not None
    assert info.solved_by[k] == its.solved_by
    assert abs(int(info.steps[k]) - int(its.steps)) <= 1


def test_colebrook() -> None:
    """1/√f = −2 log₁₀(ε/3.7 + 2.51/(Re √f)) for the friction factor f, whose square root has no negative trial points."""
    reynolds, roughness = torch.meshgrid(
        torch.logspace(3.6, 8, 12, dtype=D), torch.linspace(0, 0.05, 6, dtype=D), indexing="ij"
    )
    re, eps = reynolds.flatten(), roughness.flatten()

    def g(f: Tensor, re: Tensor, eps: Tensor) -> Tensor:
        return 1 / f.sqrt() + 2 * torch.log10(eps / 3.7 + 2.51 / (re * f.sqrt()))

    def truth(re: float, eps: float) -> float:
        x = scipy.optimize.brentq(lambda x: x + 2 * math.log10(eps / 3.7 + 2.51 / re * x), 1e-3, 1e3, xtol=1e-14)
        return 1 / x**2

    exact = torch.tensor([truth(float(a), float(b)) for a, b in zip(re, eps)], dtype=D)
    for start in (1.0, 0.02, 1e-6):
        f, info = ti.root(g, torch.full_like(re, start), (re, eps), batch_ndim=1, rtol=0.0, atol=1e-9)
        torch.testing.assert_close(f, exact, rtol=1e-7, atol=0)
        assert info.converged.all()


def test_an_implicit_step_of_robertsons_stiff_kinetics() -> None:
    """y = y0 + h F(y) with rate constants 0.04, 1e4 and 3e7, from y0 = (1, 0, 0), over ten decades of the step h."""
    h = torch.logspace(-5, 5, 11, dtype=D)
    y0 = torch.tensor([1.0, 0, 0], dtype=D)

    def g(y: Tensor, h: Tensor) -> Tensor:
        a, b, c = y.unbind(-1)
        slow, fast, pair = 0.04 * a, 1e4 * b * c, 3e7 * b**2
        return y - y0 - h[:, None] * torch.stack([fast - slow, slow - fast - pair, pair], -1)

    def truth(h: float) -> list[float]:
        """Mass is conserved and c = 3e7 h b², so one equation in b is left, with one positive root."""

        def balance(b: float) -> float:
            c = 3e7 * h * b**2
            return (1 - b - c) * (1 + 0.04 * h) - 1 - h * 1e4 * b * c

        b = scipy.optimize.brentq(balance, 0, 1, xtol=1e-18, rtol=1e-14)
        return [1 - b - 3e7 * h * b**2, b, 3e7 * h * b**2]

    y, info = ti.root(g, y0.expand(len(h), 3), (h,), batch_ndim=1, rtol=1e-13)
    exact = torch.tensor([truth(float(step)) for step in h], dtype=D)
    assert info.converged.all()
    torch.testing.assert_close(y, exact, rtol=1e-6, atol=1e-12)


def brusselator(z: Tensor, forcing: Tensor, alpha: float = 10.0) -> Tensor:
    """The steady state of u' = 1 + u²v − 4.4u + α Δu + f, v' = 3.4u − u²v + α Δv on a periodic square; z is (..., 2, N, N)."""
    u, v = z.unbind(-3)

    def diffusion(w: Tensor) -> Tensor:
        around = w.roll(1, -1) + w.roll(-1, -1) + w.roll(1, -2) + w.roll(-1, -2)
        return alpha * w.shape[-1] ** 2 * (around - 4 * w)

    return torch.stack([1 + u**2 * v - 4.4 * u + diffusion(u) + forcing, 3.4 * u - u**2 * v + diffusion(v)], dim=-3)


@pytest.mark.parametrize("N", [8, pytest.param(16, marks=pytest.mark.slow)])  # with dense Jacobians, and without
def test_the_steady_state_of_the_brusselator(N: int) -> None:
    x = torch.arange(N, dtype=D) / N
    x, y = torch.meshgrid(x, x, indexing="ij")
    disc = ((x - 0.3) ** 2 + (y - 0.6) ** 2 <= 0.1**2).to(D)
    forcing = torch.tensor([0.0, 5.0, 20.0], dtype=D)[:, None, None] * disc
    start = torch.stack([22 * (y * (1 - y)) ** 1.5, 27 * (x * (1 - x)) ** 1.5]).expand(3, 2, N, N)
    z, info = ti.root(brusselator, start, (forcing,), batch_ndim=1, rtol=1e-12)
    assert info.converged.all()
    u, v = z.unbind(1)
    # Without forcing the state is uniform; with it, what is fed in must flow out: the mean of u is 1 + that of the forcing.
    torch.testing.assert_close(u[0], torch.ones(N, N, dtype=D), rtol=1e-7, atol=0)
    torch.testing.assert_close(v[0], torch.full((N, N), 3.4, dtype=D), rtol=1e-7, atol=0)
    torch.testing.assert_close(u.mean((1, 2)), 1 + forcing.mean((1, 2)), rtol=1e-7, atol=0)
    if N == 8:
        peer = scipy.optimize.root(
            lambda w: brusselator(torch.from_numpy(w).reshape(2, N, N), forcing[1]).numpy().ravel(),
            start[1].numpy().ravel(),
            tol=1e-12,
        )
        np.testing.assert_allclose(z[1].numpy().ravel(), peer.x, rtol=1e-6)


def enzyme(z: Tensor, v: float) -> Tensor:
    """It takes in at most 2, of v > 2: its equations come down to v − 2 at infinity, and are 0 at most where z < 0."""
    s, p = z.unbind(-1)
    rate = 2 * s / (0.5 + s)
    return torch.stack([v - rate, rate - 0.3 * p - 0.1 * p**2], -1)


def chain(z: Tensor, v: float) -> Tensor:
    """With a second enzyme behind the first."""
    s, p, q = z.unbind(-1)
    first, second = 2 * s / (0.5 + s), 3 * p / (1 + p)
    return torch.stack([v - first, first - second, second - q - 0.1 * q**3], -1)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("solver", ["auto", "newton", "chord", "newton_krylov", "broyden"])
@pytest.mark.parametrize(("g", "n"), [(enzyme, 2), (chain, 3)])
def test_beside_a_huge_unknown_the_others_have_not_converged(g: Callable[..., Tensor], n: int, solver: str) -> None:
    """The rest of z is small beside one that runs off, and J is singular there: neither makes z a root."""
    for v, start in [(2.01, 5.0), (2.1, 0.01), (2.5, 0.5), (10.0, 0.1)]:
        z0 = torch.full((n,), start, dtype=D)
        z, info = ti.root(g, z0, (v,), solver=solver, on_failure="ignore")
        assert not info.converged or g(z, v).abs().max() < 1e-5
