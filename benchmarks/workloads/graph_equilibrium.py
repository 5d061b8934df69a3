"""An equilibrium on a large graph: what every node settles at under the influence of its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.workload import Arrays, Reference, Workload

NODES, EDGES = 100_000, 1_000_000
PULL = 0.6
RTOL = 1e-8


def _arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    target, source = np.sort(rng.integers(0, NODES, EDGES)), rng.integers(0, NODES, EDGES)
    degree = np.bincount(target, minlength=NODES)
    made = {"target": target, "source": source, "weight": PULL / np.maximum(degree, 1)[target]}
    return {**made, "x": rng.standard_normal(NODES), "c": rng.standard_normal(NODES)}


def _matrix(weight: np.ndarray, target: np.ndarray, source: np.ndarray) -> Any:
    from scipy.sparse import csr_array

    starts = np.concatenate([[0], np.bincount(target, minlength=NODES).cumsum()])
    return csr_array((weight, source, starts), shape=(NODES, NODES))


def _iterate(f: Callable[[np.ndarray], np.ndarray], z: np.ndarray, rtol: float) -> np.ndarray:
    """Until what the contraction, no more than PULL in the largest norm, tells of the error is within the tolerance."""
    for _ in range(1000):
        before, z = z, f(z)
        if PULL / (1 - PULL) * np.linalg.norm(z - before) <= rtol * np.linalg.norm(z):
            return z
    raise RuntimeError("it did not converge")


def _equilibrium(A: Any, x: np.ndarray, rtol: float) -> np.ndarray:
    return _iterate(lambda z: np.tanh(A @ z + x), np.zeros(NODES), rtol)


def _pullback(At: Any, z: np.ndarray, c: np.ndarray, rtol: float) -> np.ndarray:
    """s u, with s = 1 − z² and u = c + Aᵀ(s u)."""
    s = 1 - z**2
    gradient: np.ndarray = s * _iterate(lambda u: c + At @ (s * u), c, rtol)
    return gradient


def _reference(arrays: Arrays) -> Reference:
    A = _matrix(arrays["weight"], arrays["target"], arrays["source"])
    z = _equilibrium(A, arrays["x"], 1e-13)
    return Reference(z, {"x": _pullback(A.T.tocsr(), z, arrays["c"], 1e-13)})


workload = Workload(
    name="graph",
    title=f"An equilibrium on {NODES:,} nodes and {EDGES:,} edges",
    description=f"""
z = tanh(A z + x), one number a node, each row of the sparse A adding up to {PULL}; the gradient in x. float64, one thread, to a
relative error of {RTOL:.0e}.
""",
    parameters=("x",),
    arrays=_arrays,
    reference=_reference,
)


def _csr(p: dict[str, Any]) -> Any:
    import torch

    A = _matrix(p["weight"].numpy(), p["target"].numpy(), p["source"].numpy())
    starts, columns = (torch.from_numpy(part.astype(np.int64)) for part in (A.indptr, A.indices))
    return torch.sparse_csr_tensor(starts, columns, p["weight"], (NODES, NODES), check_invariants=False)


@workload.torch("torchimplicit", note="A is a plain CSR tensor of torch.")
def _plain(p: dict[str, Any]) -> Callable[[], Any]:
    import torch

    import torchimplicit as ti

    torch.set_num_threads(1)
    A, x, start = _csr(p), p["x"], torch.zeros(NODES, dtype=torch.float64)
    return lambda: ti.fixed_point(lambda z: torch.tanh(A @ z + x), start, rtol=RTOL).value


@workload.torch("torchimplicit, kept", note="`linear.Sparse`, which keeps Aᵀ for the backward.")
def _stored(p: dict[str, Any]) -> Callable[[], Any]:
    import torch

    import torchimplicit as ti

    torch.set_num_threads(1)
    x, start = p["x"], torch.zeros(NODES, dtype=torch.float64)
    A = ti.linear.Sparse(p["weight"], ti.linear.Pattern(p["target"], p["source"], NODES, NODES))
    return lambda: ti.fixed_point(lambda z: torch.tanh(A.matvec(z) + x), start, rtol=RTOL).value


@workload.torch("by hand", packages=("scipy",), note="SciPy's CSR products with A and a stored Aᵀ")
def _by_hand(p: dict[str, Any]) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(1)
    A = _matrix(p["weight"].numpy(), p["target"].numpy(), p["source"].numpy())
    At = A.T.tocsr()

    class Solved(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.z = _equilibrium(A, x.numpy(), RTOL)
            return torch.from_numpy(ctx.z)

        @staticmethod
        def backward(ctx: Any, *cotangents: Any) -> Any:
            return torch.from_numpy(_pullback(At, ctx.z, cotangents[0].numpy(), RTOL))

    return lambda: Solved.apply(p["x"])


@workload.jax(
    "optimistix, lineax",
    packages=("optimistix", "lineax"),
    note="its `FixedPointIteration` and lineax's BiCGStab, products by gathering and `segment_sum`; compiled",
)
def _optimistix() -> Callable[[Any], Any]:
    import jax
    import lineax
    import optimistix

    tight: dict[str, Any] = {"rtol": RTOL, "atol": RTOL, "max_steps": 1000}
    solver = optimistix.FixedPointIteration(rtol=RTOL * (1 - PULL), atol=RTOL * (1 - PULL))
    adjoint = optimistix.ImplicitAdjoint(lineax.BiCGStab(**tight))

    def solve(p: Any) -> Any:
        def f(z: Any, x: Any) -> Any:
            messages = p["weight"] * z[p["source"]]
            summed = jax.ops.segment_sum(messages, p["target"], NODES, indices_are_sorted=True)
            return jax.numpy.tanh(summed + x)

        options: dict[str, Any] = {"adjoint": adjoint, "max_steps": 1000}
        return optimistix.fixed_point(f, solver, p["x"] * 0.0, p["x"], **options).value

    return solve
