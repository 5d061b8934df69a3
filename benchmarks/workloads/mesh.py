"""Discretised differential equations on meshes, and how they are solved by hand with the Jacobian written out."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.workload import Arrays, Reference

RTOL = 1e-10
WIND = 0.05


def _laplacian(sides: tuple[int, ...]) -> Any:
    from scipy import sparse

    total = sparse.csr_array((1, 1))
    for m in sides:
        total = sparse.kronsum(total, sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(m, m)))
    return total.tocsr()


def _wind(sides: tuple[int, ...]) -> Any:
    """Central differences along the last dimension."""
    from scipy import sparse

    m = sides[-1]
    line = sparse.diags_array([-1.0, 1.0], offsets=[-1, 1], shape=(m, m))
    return WIND * sparse.kron(sparse.eye_array(int(np.prod(sides[:-1]))), line).tocsr()


class Mesh:
    """−Δu + w u_x (1 + u) = λ eᵘ on a mesh with zeros around it, in units of the mesh's width; ``wind`` or none. With a ``step``
    u − Δu = λ eᵘ times that: one of an implicit method in time, in other units."""

    def __init__(self, *sides: int, wind: bool = False, step: float = 0.0) -> None:
        self.sides, self.windy, self.kept = sides, wind, float(step > 0)
        self.unit = step or 1 / (sides[0] + 1) ** 2
        self.rate = (
            2 if len(sides) == 1 else 5
        )  # there is no solution beyond 3.5 on a line, 6.8 in the plane, 9.9 in space

    def arrays(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"rate": self.rate + rng.uniform(-1, 1, self.sides), "c": rng.standard_normal(self.sides)}

    def residual(self, u: Any, rate: Any) -> Any:
        """In torch."""
        from torch.nn.functional import pad

        ndim = len(self.sides)
        p = pad(u, (1, 1) * ndim)
        inner = (slice(1, -1),) * ndim

        def shifted(dim: int, by: int) -> Any:
            return p[(*inner[:dim], slice(1 + by, p.shape[dim] - 1 + by), *inner[dim + 1 :])]

        out = (2 * ndim + self.kept) * u - rate * u.exp() * self.unit
        for dim in range(ndim):
            out = out - shifted(dim, 1) - shifted(dim, -1)
        if self.windy:
            out = out + WIND * (shifted(ndim - 1, 1) - shifted(ndim - 1, -1)) * (1 + u)
        return out

    def jax_residual(self, u: Any, rate: Any) -> Any:
        """In JAX."""
        import jax.numpy as jnp

        ndim = len(self.sides)
        p = jnp.pad(u, 1)
        inner = (slice(1, -1),) * ndim

        def shifted(dim: int, by: int) -> Any:
            return p[(*inner[:dim], slice(1 + by, p.shape[dim] - 1 + by), *inner[dim + 1 :])]

        out = (2 * ndim + self.kept) * u - rate * jnp.exp(u) * self.unit
        for dim in range(ndim):
            out = out - shifted(dim, 1) - shifted(dim, -1)
        if self.windy:
            out = out + WIND * (shifted(ndim - 1, 1) - shifted(ndim - 1, -1)) * (1 + u)
        return out

    def by_hand(self, rate: np.ndarray, solve: Callable[..., Any]) -> tuple[np.ndarray, Callable[..., Any]]:
        """Newton's method with the Jacobian written out; u, and what solves with the transposed Jacobian there.

        ``solve(self, u, rate, progress)`` gives (b, transposed) -> J⁻¹ b; ``progress`` is the last ratio of two residuals.
        """
        rate = rate.reshape(-1) * self.unit
        u, before = np.zeros(rate.size), None
        for _ in range(30):
            F = self.linear @ u - rate * np.exp(u)
            F = F if self.wind is None else F + (self.wind @ u) * (1 + u)
            norm = np.linalg.norm(F)
            inverse = solve(self, u, rate, None if before is None else norm / before)
            before = norm
            step = inverse(F, False)
            u = u - step
            if np.abs(step).max() <= RTOL * np.sqrt(np.mean(u**2)):
                return u, inverse
        raise RuntimeError("Newton's method did not converge")

    @cached_property
    def linear(self) -> Any:
        """The linear part of the residual, in SciPy's; made once, as is what follows."""
        from scipy import sparse

        return (_laplacian(self.sides) + self.kept * sparse.eye_array(int(np.prod(self.sides)))).tocsr()

    @cached_property
    def wind(self) -> Any:
        """The differences that wind takes, or None."""
        return _wind(self.sides) if self.windy else None

    def jacobian(self, u: np.ndarray, rate: np.ndarray) -> Any:
        """Of the residual, in SciPy's; ``rate`` in units of the mesh."""
        from scipy import sparse

        J = self.linear - sparse.diags_array(rate * np.exp(u))
        if self.wind is None:
            return J
        return J + sparse.diags_array(1 + u) @ self.wind + sparse.diags_array(self.wind @ u)

    def pullback(self, u: np.ndarray, c: np.ndarray, inverse: Callable[..., Any]) -> np.ndarray:
        gradient: np.ndarray = inverse(c.reshape(-1), True) * np.exp(u) * self.unit
        return gradient.reshape(self.sides)

    def reference(self, arrays: Arrays) -> Reference:
        solve = factors if len(self.sides) < 3 else conjugate_gradients(1e-14)
        u, inverse = self.by_hand(arrays["rate"], solve)
        return Reference(u.reshape(self.sides), {"rate": self.pullback(u, arrays["c"], inverse)})


Solve = Callable[[np.ndarray, bool], np.ndarray]


def factors(mesh: Mesh, u: np.ndarray, rate: np.ndarray, progress: float | None) -> Solve:
    from scipy.sparse.linalg import splu

    factors = splu(mesh.jacobian(u, rate).tocsc())
    return lambda b, transposed: factors.solve(b, "T" if transposed else "N")


def bands(mesh: Mesh, u: np.ndarray, rate: np.ndarray, progress: float | None) -> Solve:
    """On a line, where J is tridiagonal and symmetric."""
    from scipy.linalg import solve_banded

    packed = np.full((3, u.size), -1.0)
    packed[1] = 2 + mesh.kept - rate * np.exp(u)
    return lambda b, transposed: solve_banded((1, 1), packed, b, check_finite=False)


def conjugate_gradients(rtol: float) -> Callable[..., Solve]:
    def solve(mesh: Mesh, u: np.ndarray, rate: np.ndarray, progress: float | None) -> Solve:
        J = mesh.jacobian(u, rate).tocsr()
        loose = rtol if rtol < RTOL else 0.1 if progress is None else min(0.1, max(1e-4, 0.9 * progress**2))

        def inverse(b: np.ndarray, transposed: bool) -> np.ndarray:
            x, r = np.zeros_like(b), b.copy()
            p, gamma = r.copy(), r @ r
            bound = ((rtol if transposed else loose) ** 2) * gamma
            while gamma > bound:
                q = J @ p
                alpha = gamma / (p @ q)
                x += alpha * p
                r -= alpha * q
                gamma, before = r @ r, gamma
                p = r + gamma / before * p
            return x

        return inverse

    return solve
