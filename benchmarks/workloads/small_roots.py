"""Very many very small systems: no Python loop over samples can be paid for, nor a library call per system."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.workload import Arrays, Reference, Workload

BATCH, UNKNOWNS = 10_000, 8
TOLERANCE = 1e-8


def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    W = rng.standard_normal((UNKNOWNS, UNKNOWNS))
    W *= 0.9 / np.linalg.norm(W, 2)
    return {"W": W, "b": rng.standard_normal((BATCH, UNKNOWNS)), "c": rng.standard_normal((BATCH, UNKNOWNS))}


def reference(arrays: Arrays) -> Reference:
    """Newton's method with the dense Jacobian I − diag(1 − t²) W until nothing moves, then one transposed solve."""
    import torch

    W, b, c = (torch.from_numpy(arrays[name]) for name in ("W", "b", "c"))
    identity = torch.eye(UNKNOWNS, dtype=W.dtype)
    z = torch.zeros_like(b)
    for _ in range(50):
        t = torch.tanh(z @ W.T + b)
        step = torch.linalg.solve(identity - (1 - t**2)[:, :, None] * W, z - t)
        z = z - step
        if step.abs().max() <= 1e-14:
            break
    else:
        raise RuntimeError("the reference did not converge")
    s = 1 - z**2
    a = s * torch.linalg.solve((identity - s[:, :, None] * W).mT, c)
    return Reference(z.numpy(), {"W": (a.T @ z).numpy(), "b": a.numpy()})


workload = Workload(
    name="small_roots",
    title="10,000 roots of 8 unknowns",
    description=f"""
Roots of z − tanh(W z + b_i) for {BATCH:,} vectors b_i of {UNKNOWNS} entries, float64,
from zero to {TOLERANCE:.0e}; gradients in W and in all b_i.
""",
    parameters=("W", "b"),
    arrays=arrays,
    reference=reference,
)


def _torchimplicit(p: dict[str, Any], solver: str) -> Callable[[], Any]:
    import torch

    import torchimplicit as ti

    z0 = torch.zeros_like(p["b"])

    def g(z: Any, W: Any, b: Any) -> Any:
        return z - torch.tanh(z @ W.T + b)

    options: dict[str, Any] = {"batched": (False, True), "rtol": 0.0, "atol": TOLERANCE}
    return lambda: ti.root(g, z0, (p["W"], p["b"]), solver=solver, batch_ndim=1, **options).value


@workload.torch("torchimplicit, newton")
def torchimplicit_newton(p: dict[str, Any]) -> Callable[[], Any]:
    return _torchimplicit(p, "newton")


@workload.torch("torchimplicit, chord")
def torchimplicit_chord(p: dict[str, Any]) -> Callable[[], Any]:
    return _torchimplicit(p, "chord")


def _by_hand(p: dict[str, Any], jacobian: Callable[[Any, Any, Any], Any]) -> Callable[[], Any]:
    """Newton's method in a loop, and the implicit function theorem in the backward of a Function."""
    import torch

    def g(z: Any, W: Any, b: Any) -> Any:
        return z - torch.tanh(z @ W.T + b)

    class Root(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, W: Any, b: Any) -> Any:
            z = torch.zeros_like(b)
            while True:
                r = g(z, W, b)
                if r.square().mean(1).max() <= TOLERANCE**2:
                    break
                z = z - torch.linalg.solve(jacobian(z, W, b), r)
            ctx.save_for_backward(z, W, b)
            return z

        @staticmethod
        def backward(ctx: Any, *cotangents: Any) -> Any:
            z, W, b = ctx.saved_tensors
            u = torch.linalg.solve(jacobian(z, W, b).mT, cotangents[0])
            with torch.enable_grad():
                W, b = W.detach().requires_grad_(), b.detach().requires_grad_()
                return torch.autograd.grad(g(z, W, b), (W, b), -u)

    return lambda: Root.apply(p["W"], p["b"])


@workload.torch("torch by hand", note="Newton in a batched loop with the Jacobian written out")
def by_hand(p: dict[str, Any]) -> Callable[[], Any]:
    import torch

    identity = torch.eye(UNKNOWNS, dtype=torch.float64)

    def jacobian(z: Any, W: Any, b: Any) -> Any:
        return identity - (1 - torch.tanh(z @ W.T + b) ** 2)[:, :, None] * W

    return _by_hand(p, jacobian)


@workload.torch("torch by hand, jacrev", note="the same with `vmap(jacrev(g))`")
def by_hand_jacrev(p: dict[str, Any]) -> Callable[[], Any]:
    import torch

    def g(z: Any, W: Any, b: Any) -> Any:
        return z - torch.tanh(W @ z + b)

    return _by_hand(p, torch.vmap(torch.func.jacrev(g), in_dims=(0, None, 0)))


def _optimistix(solver: Any) -> Callable[[dict[str, Any]], Any]:
    import jax
    import jax.numpy as jnp
    import optimistix

    def g(z: Any, args: Any) -> Any:
        W, b = args
        return z - jnp.tanh(W @ z + b)

    def solve(W: Any, b: Any) -> Any:
        return optimistix.root_find(g, solver, jnp.zeros_like(b), (W, b)).value

    return lambda p: jax.vmap(solve, in_axes=(None, 0))(p["W"], p["b"])


@workload.jax("optimistix, newton", packages=("optimistix", "lineax"), note="under jit and vmap")
def optimistix_newton() -> Callable[[dict[str, Any]], Any]:
    import optimistix

    return _optimistix(optimistix.Newton(rtol=TOLERANCE, atol=TOLERANCE))


@workload.jax("optimistix, chord", packages=("optimistix", "lineax"), note="under jit and vmap")
def optimistix_chord() -> Callable[[dict[str, Any]], Any]:
    import optimistix

    return _optimistix(optimistix.Chord(rtol=TOLERANCE, atol=TOLERANCE))


@workload.torch(
    "xitorch",
    packages=("xitorch",),
    note="sees one system of 80,000 unknowns; Broyden's first method, started with the identity as the Jacobian "
    "(its own choice, `alpha=None`, needs 3,218 evaluations in place of 18)",
)
def xitorch_broyden(p: dict[str, Any]) -> Callable[[], Any]:
    import torch
    from xitorch.optimize import rootfinder

    def g(z: Any, W: Any, b: Any) -> Any:
        return z - torch.tanh(z @ W.T + b)

    tolerance = TOLERANCE * p["b"].numel() ** 0.5  # it compares the Euclidean norm over the whole batch
    z0 = torch.zeros_like(p["b"])
    adjoint = {"method": "bicgstab", "rtol": TOLERANCE, "atol": TOLERANCE}
    options = {"method": "broyden1", "f_tol": tolerance, "alpha": -1.0, "bck_options": adjoint}
    return lambda: rootfinder(g, z0, (p["W"], p["b"]), **options)
