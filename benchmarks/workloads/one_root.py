"""One very small system: nothing but overhead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.compiled import IN_CPP, NOTE, in_graph
from benchmarks.workload import Workload
from benchmarks.workloads.tanh_roots import TOLERANCE, analytic_jacobian, g_jax, newton_by_hand, reference


def _torchimplicit(p: dict[str, Any], captures: bool, compile: bool, **inductor: bool) -> Callable[[], Any]:
    import torch

    import torchimplicit as ti

    W, b, z0 = p["W"], p["b"], torch.zeros_like(p["b"])

    def g(z: Any, W: Any, b: Any) -> Any:
        return z - torch.tanh(W @ z + b)

    options: dict[str, Any] = {"rtol": 0.0, "atol": TOLERANCE}
    if captures:
        return in_graph(lambda: ti.root(lambda z: z - torch.tanh(W @ z + b), z0, **options).value, compile)
    return in_graph(lambda: ti.root(g, z0, (W, b), **options).value, compile, **inductor)


def make(unknowns: int) -> Workload:
    def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
        W = rng.standard_normal((unknowns, unknowns))
        W *= 0.9 / np.linalg.norm(W, 2)
        return {"W": W, "b": rng.standard_normal(unknowns), "c": rng.standard_normal(unknowns)}

    workload = Workload(
        name=f"one_root{unknowns}",
        title=f"One root of {unknowns} unknowns",
        description=f"""
The root of z − tanh(W z + b), {unknowns} unknowns, float64, from zero to {TOLERANCE:.0e}; gradients in W and b. The
arithmetic takes no time; this is what a call costs.
""",
        parameters=("W", "b"),
        arrays=arrays,
        reference=reference,
    )

    @workload.torch("torchimplicit", note="W and b in `args`")
    def _(p: dict[str, Any]) -> Callable[[], Any]:
        return _torchimplicit(p, captures=False, compile=False)

    @workload.torch("torchimplicit, captures", note="W and b captured by a lambda")
    def _(p: dict[str, Any]) -> Callable[[], Any]:
        return _torchimplicit(p, captures=True, compile=False)

    @workload.torch("torchimplicit, compiled", note=f"W and b in `args`, {NOTE}")
    def _(p: dict[str, Any]) -> Callable[[], Any]:
        return _torchimplicit(p, captures=False, compile=True)

    @workload.torch("torchimplicit, compiled in C++", note=IN_CPP)
    def _(p: dict[str, Any]) -> Callable[[], Any]:
        return _torchimplicit(p, captures=False, compile=True, cpp_wrapper=True)

    @workload.torch("torchimplicit, compiled, captures", note=f"W and b captured by a lambda, {NOTE}")
    def _(p: dict[str, Any]) -> Callable[[], Any]:
        return _torchimplicit(p, captures=True, compile=True)

    @workload.torch("torch by hand", note="Newton's method with the Jacobian by `torch.func.jacrev`")
    def _(p: dict[str, Any]) -> Callable[[], Any]:
        import torch

        def g(z: Any, W: Any, b: Any) -> Any:
            return z - torch.tanh(W @ z + b)

        root = newton_by_hand(torch.func.jacrev(g))
        return lambda: root(p["W"], p["b"])

    @workload.torch("torch by hand, analytic", note="the same with the Jacobian written out")
    def _(p: dict[str, Any]) -> Callable[[], Any]:
        root = newton_by_hand(analytic_jacobian)
        return lambda: root(p["W"], p["b"])

    @workload.jax("optimistix, newton", packages=("optimistix", "lineax"), note="under jit")
    def _() -> Callable[[dict[str, Any]], Any]:
        import jax.numpy as jnp
        import optimistix

        solver: Any = optimistix.Newton(rtol=TOLERANCE, atol=TOLERANCE)
        return lambda p: optimistix.root_find(g_jax, solver, jnp.zeros_like(p["b"]), (p["W"], p["b"])).value

    @workload.torch(
        "xitorch",
        packages=("xitorch",),
        note="Broyden's first method, started with the identity as the Jacobian, to 1e-9: it returns the iterate before the "
        "one that has met the tolerance",
    )
    def _(p: dict[str, Any]) -> Callable[[], Any]:
        import torch
        from xitorch.optimize import rootfinder

        def g(z: Any, W: Any, b: Any) -> Any:
            return z - torch.tanh(W @ z + b)

        z0, tolerance = torch.zeros_like(p["b"]), TOLERANCE / 10 * unknowns**0.5  # it compares the Euclidean norm
        return lambda: rootfinder(g, z0, (p["W"], p["b"]), f_tol=tolerance, alpha=-1.0)

    return workload


two, eight = make(2), make(8)
