"""Linear systems with structure: a tridiagonal one, and discretised diffusion in the plane."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.workload import Arrays, Reference, Workload

Solve = Callable[[], Any]


def _tridiagonal_arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    n = 100_000
    below, above = rng.uniform(-1, 0, (2, n - 1))
    diagonal = 0.1 + rng.uniform(0, 1, n) - np.append(above, 0) - np.append(0, below)
    return {"below": below, "diagonal": diagonal, "above": above, "b": rng.normal(size=n), "c": rng.normal(size=n)}


def _elimination(below: np.ndarray, diagonal: np.ndarray, above: np.ndarray, b: np.ndarray) -> np.ndarray:
    """From one end to the other; no pivot is needed where the diagonal dominates."""
    pivots, rhs = diagonal.tolist(), b.tolist()
    for i, (lower, upper) in enumerate(zip(below.tolist(), above.tolist())):
        factor = lower / pivots[i]
        pivots[i + 1] -= factor * upper
        rhs[i + 1] -= factor * rhs[i]
    x = [rhs[-1] / pivots[-1]]
    for i in reversed(range(len(rhs) - 1)):
        x.append((rhs[i] - above[i] * x[-1]) / pivots[i])
    return np.array(x[::-1])


def _tridiagonal_reference(arrays: Arrays) -> Reference:
    below, diagonal, above = arrays["below"], arrays["diagonal"], arrays["above"]
    z = _elimination(below, diagonal, above, arrays["b"])
    u = _elimination(above, diagonal, below, arrays["c"])
    return Reference(z, {"below": -u[1:] * z[:-1], "diagonal": -u * z, "above": -u[:-1] * z[1:], "b": u})


tridiagonal = Workload(
    name="tridiagonal",
    title="A tridiagonal system with 100,000 unknowns",
    description="""
One solve with random diagonals, of which the middle one dominates, and the gradient in all of them and in the right-hand side.
float64.
""",
    parameters=("below", "diagonal", "above", "b"),
    arrays=_tridiagonal_arrays,
    reference=_tridiagonal_reference,
)


@tridiagonal.torch("torchimplicit", packages=("scipy",))
def _tridiagonal(p: dict[str, Any]) -> Solve:
    import torchimplicit as ti

    return lambda: ti.linear_solve(ti.linear.tridiagonal(p["below"], p["diagonal"], p["above"]), p["b"]).value


@tridiagonal.torch("SciPy by hand", packages=("scipy",), note="`solve_banded`, and in the backward again, with Aᵀ")
def _tridiagonal_by_hand(p: dict[str, Any]) -> Solve:
    import torch
    from scipy.linalg import solve_banded

    def solve(below: Any, diagonal: Any, above: Any, b: Any) -> Any:
        bands = np.zeros((3, len(b)))
        bands[0, 1:], bands[1], bands[2, :-1] = above, diagonal, below
        return torch.from_numpy(solve_banded((1, 1), bands, b.numpy()))

    class Solution(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *given: Any) -> Any:
            z = solve(*given)
            ctx.save_for_backward(z, *given)
            return z

        @staticmethod
        def backward(ctx: Any, *cotangents: Any) -> Any:
            z, below, diagonal, above, _ = ctx.saved_tensors
            u = solve(above, diagonal, below, cotangents[0])
            return -u[1:] * z[:-1], -u * z, -u[:-1] * z[1:], u

    return lambda: Solution.apply(p["below"], p["diagonal"], p["above"], p["b"])


@tridiagonal.jax("lineax", packages=("lineax",), note="its `Tridiagonal`, compiled")
def _tridiagonal_lineax() -> Callable[[Any], Any]:
    import lineax

    def solve(p: Any) -> Any:
        operator = lineax.TridiagonalLinearOperator(p["diagonal"], p["below"], p["above"])
        return lineax.linear_solve(operator, p["b"], lineax.Tridiagonal()).value

    return solve


def _poisson(m: int) -> Workload:
    """On a grid of m × m points with values 0 around it."""
    points = np.arange(m * m).reshape(m, m)
    edges = [np.stack([a.ravel(), b.ravel()]) for a, b in ((points[1:], points[:-1]), (points[:, 1:], points[:, :-1]))]
    one, other = np.concatenate(edges, 1)
    rows, columns = np.concatenate([points.ravel(), one, other]), np.concatenate([points.ravel(), other, one])
    order = np.lexsort((columns, rows))
    rows, columns = rows[order], columns[order]

    def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
        conductance = rng.uniform(0.5, 1.5, len(one))
        around = 4 - sum(np.bincount(ends, minlength=m * m) for ends in (one, other))
        diagonal = around + sum(np.bincount(ends, conductance, m * m) for ends in (one, other))
        values = np.concatenate([diagonal, -conductance, -conductance])[order]
        return {"values": values, "b": rng.normal(size=m * m), "c": rng.normal(size=m * m)}

    def conjugate_gradients(values: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The matrix is symmetric: until the residual is rounding."""
        x, r = np.zeros_like(b), b
        p, square = r, r @ r
        for _ in range(20 * m):
            Ap = np.bincount(rows, values * p[columns], m * m)
            x, r = x + square / (p @ Ap) * p, r - square / (p @ Ap) * Ap
            before, square = square, r @ r
            if square <= 1e-30 * (b @ b):
                return x
            p = r + square / before * p
        raise RuntimeError("the reference did not converge")

    def reference(arrays: Arrays) -> Reference:
        z, u = (conjugate_gradients(arrays["values"], arrays[name]) for name in ("b", "c"))
        return Reference(z, {"values": -u[rows] * z[columns], "b": u})

    workload = Workload(
        name=f"poisson{m}",
        title=f"Diffusion on {m} × {m} points",
        description=f"""
One solve with the sparse matrix of a diffusion with random conductances, {m * m} unknowns, and the gradient in its entries and in the
right-hand side. float64.
""",
        parameters=("values", "b"),
        arrays=arrays,
        reference=reference,
    )

    @workload.torch(
        "torchimplicit", packages=("scipy",), note="`linear_solve` of a COO tensor that is made anew each time"
    )
    def ours(p: dict[str, Any]) -> Solve:
        import torch

        import torchimplicit as ti

        index = torch.from_numpy(np.stack([rows, columns]))

        def solve() -> Any:
            options: dict[str, Any] = {"is_coalesced": True, "check_invariants": False}
            A = torch.sparse_coo_tensor(index, p["values"], (m * m, m * m), **options)
            return ti.linear_solve(A, p["b"]).value

        return solve

    @workload.torch("torchimplicit, kept", packages=("scipy",), note="the places of the entries are made once")
    def ours_with_pattern(p: dict[str, Any]) -> Solve:
        import torch

        import torchimplicit as ti

        pattern = ti.linear.Pattern(torch.from_numpy(rows), torch.from_numpy(columns), m * m, m * m)
        return lambda: ti.linear_solve(ti.linear.Sparse(p["values"], pattern), p["b"]).value

    @workload.torch(
        "by hand", packages=("scipy",), note="SciPy's `splu` (COLAMD), whose factors are kept for the backward"
    )
    def by_hand(p: dict[str, Any]) -> Solve:
        import torch
        from scipy.sparse import csc_array
        from scipy.sparse.linalg import splu

        class Solution(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, values: Any, b: Any) -> Any:
                ctx.factors = splu(csc_array((values.numpy(), (rows, columns)), shape=(m * m, m * m)))
                ctx.z = ctx.factors.solve(b.numpy())
                return torch.from_numpy(ctx.z)

            @staticmethod
            def backward(ctx: Any, *cotangents: Any) -> Any:
                u = ctx.factors.solve(cotangents[0].numpy(), "T")
                return torch.from_numpy(-u[rows] * ctx.z[columns]), torch.from_numpy(u)

        return lambda: Solution.apply(p["values"], p["b"])

    @workload.torch("torch-sla", packages=("torch-sla", "scipy"), note="`spsolve` with SciPy's LU")
    def torch_sla(p: dict[str, Any]) -> Solve:
        import torch
        from torch_sla import spsolve  # type: ignore[import-not-found]

        at = torch.from_numpy(rows), torch.from_numpy(columns)
        return lambda: spsolve(p["values"], *at, (m * m, m * m), p["b"], backend="scipy", method="lu")

    @workload.jax(
        "optimistix, lineax",
        packages=("lineax",),
        note="lineax's CG, products by gathering and `segment_sum`; compiled",
    )
    def lineax_cg() -> Callable[[Any], Any]:
        import jax
        import lineax

        solver = lineax.CG(rtol=1e-12, atol=1e-12, max_steps=20 * m)

        def solve(p: Any) -> Any:
            def product(x: Any) -> Any:
                return jax.ops.segment_sum(p["values"] * x[columns], rows, m * m, indices_are_sorted=True)

            structure = jax.eval_shape(lambda: p["b"])
            operator = lineax.FunctionLinearOperator(product, structure, lineax.positive_semidefinite_tag)
            return lineax.linear_solve(operator, p["b"], solver).value

        return solve

    return workload


poisson64, poisson128 = _poisson(64), _poisson(128)
