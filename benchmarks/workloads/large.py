"""Large sparse systems: discretised differential equations, against what SciPy does by hand with the Jacobian written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.workload import Arrays, Reference, Workload

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
    """−Δu + w u_x (1 + u) = λ eᵘ on a mesh with zeros around it, in units of the mesh's width; ``wind`` or none."""

    def __init__(self, *sides: int, wind: bool = False) -> None:
        self.sides, self.wind = sides, wind
        self.unit = 1 / (sides[0] + 1) ** 2

    def arrays(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"rate": 5 + rng.uniform(-1, 1, self.sides), "c": rng.standard_normal(self.sides)}

    def residual(self, u: Any, rate: Any) -> Any:
        """In torch."""
        from torch.nn.functional import pad

        ndim = len(self.sides)
        p = pad(u, (1, 1) * ndim)
        inner = (slice(1, -1),) * ndim

        def shifted(dim: int, by: int) -> Any:
            return p[(*inner[:dim], slice(1 + by, p.shape[dim] - 1 + by), *inner[dim + 1 :])]

        out = 2 * ndim * u - rate * u.exp() * self.unit
        for dim in range(ndim):
            out = out - shifted(dim, 1) - shifted(dim, -1)
        if self.wind:
            out = out + WIND * (shifted(ndim - 1, 1) - shifted(ndim - 1, -1)) * (1 + u)
        return out

    def by_hand(self, rate: np.ndarray, solve: Callable[..., Any]) -> tuple[np.ndarray, Callable[..., Any]]:
        """Newton's method with the Jacobian written out; u, and what solves with the transposed Jacobian there.

        ``solve(J, progress)`` gives (b, transposed) -> J⁻¹ b; ``progress`` is the last ratio of two residuals.
        """
        from scipy import sparse

        L, rate = _laplacian(self.sides), rate.reshape(-1) * self.unit
        D = _wind(self.sides) if self.wind else None
        u, before = np.zeros(rate.size), None
        for _ in range(30):
            F = L @ u - rate * np.exp(u)
            J = L - sparse.diags_array(rate * np.exp(u))
            if D is not None:
                F, J = F + (D @ u) * (1 + u), J + sparse.diags_array(1 + u) @ D + sparse.diags_array(D @ u)
            norm = np.linalg.norm(F)
            inverse = solve(J, None if before is None else norm / before)
            before = norm
            step = inverse(F, False)
            u = u - step
            if np.abs(step).max() <= RTOL * np.sqrt(np.mean(u**2)):
                return u, inverse
        raise RuntimeError("Newton's method did not converge")

    def pullback(self, u: np.ndarray, c: np.ndarray, inverse: Callable[..., Any]) -> np.ndarray:
        gradient: np.ndarray = inverse(c.reshape(-1), True) * np.exp(u) * self.unit
        return gradient.reshape(self.sides)

    def reference(self, arrays: Arrays) -> Reference:
        solve = _factors if len(self.sides) < 3 else _conjugate_gradients(1e-14)
        u, inverse = self.by_hand(arrays["rate"], solve)
        return Reference(u.reshape(self.sides), {"rate": self.pullback(u, arrays["c"], inverse)})


def _factors(J: Any, progress: float | None) -> Callable[..., Any]:
    from scipy.sparse.linalg import splu

    factors = splu(J.tocsc())
    return lambda b, transposed: factors.solve(b, "T" if transposed else "N")


def _conjugate_gradients(rtol: float) -> Callable[..., Any]:
    def solve(J: Any, progress: float | None) -> Callable[..., Any]:
        J = J.tocsr()
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


def _workload(name: str, title: str, mesh: Mesh, by_hand: str, solve: Callable[..., Any]) -> Workload:
    made = Workload(
        name=name,
        title=title,
        description=f"""
−Δu{" + w uₓ(1 + u)" if mesh.wind else ""} = λ eᵘ on a mesh of {" × ".join(map(str, mesh.sides))} points, λ = 5 ± 1 at each of them, the
parameters; float64, from zero, one thread, to a relative error of {RTOL:.0e}. By hand, the Jacobian is written out.
""",
        parameters=("rate",),
        arrays=mesh.arrays,
        reference=mesh.reference,
    )

    def ours(p: dict[str, Any], **options: Any) -> Callable[[], Any]:
        import torch

        import torchimplicit as ti

        torch.set_num_threads(1)
        start = torch.zeros_like(p["rate"])
        return lambda: ti.root(mesh.residual, start, (p["rate"],), rtol=RTOL, **options).value

    @made.torch("torchimplicit", packages=("scipy",), note="The pattern is found, and factorised, anew in every call.")
    def by_default(p: dict[str, Any]) -> Callable[[], Any]:
        return ours(p)

    @made.torch(
        "torchimplicit, with a memory",
        packages=("scipy",),
        note="`linear.Memory` keeps pattern and factors between calls.",
    )
    def with_memory(p: dict[str, Any]) -> Callable[[], Any]:
        import torchimplicit as ti

        return ours(p, sparsity=ti.linear.Memory())

    @made.torch(by_hand, packages=("scipy",))
    def hand(p: dict[str, Any]) -> Callable[[], Any]:
        import torch

        torch.set_num_threads(1)

        class Solved(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, rate: Any) -> Any:
                ctx.u, ctx.inverse = mesh.by_hand(rate.numpy(), solve)
                return torch.from_numpy(ctx.u.reshape(mesh.sides))

            @staticmethod
            def backward(ctx: Any, *cotangents: Any) -> Any:
                return torch.from_numpy(mesh.pullback(ctx.u, cotangents[0].numpy(), ctx.inverse))

        return lambda: Solved.apply(p["rate"])

    return made


SPLU = "SciPy by hand, splu"
bratu64 = _workload("bratu64", "Bratu's equation, 64 × 64", Mesh(64, 64), SPLU, _factors)
bratu128 = _workload("bratu128", "Bratu's equation, 128 × 128", Mesh(128, 128), SPLU, _factors)
bratu256 = _workload("bratu256", "Bratu's equation, 256 × 256", Mesh(256, 256), SPLU, _factors)
convection = _workload("convection", "Convection, 256 × 256", Mesh(256, 256, wind=True), SPLU, _factors)
chain = _workload("chain", "A chain of 100,000 unknowns", Mesh(100_000), SPLU, _factors)
space = _workload(
    "space", "Bratu's equation, 40 × 40 × 40", Mesh(40, 40, 40), "NumPy by hand, CG", _conjugate_gradients(RTOL)
)
LARGE = (bratu64, bratu128, bratu256, convection, chain, space)
