"""Many systems z − tanh(W z + b_i) = 0, from very many very small ones to a few that a library factorises well."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.compiled import NOTE, in_graph
from benchmarks.workload import Arrays, Reference, Workload
from benchmarks.workloads.patient import patient

TOLERANCE = 1e-8


def arrays(rng: np.random.Generator, batch: int, unknowns: int) -> dict[str, np.ndarray]:
    W = rng.standard_normal((unknowns, unknowns))
    W *= 0.9 / np.linalg.norm(W, 2)
    return {"W": W, "b": rng.standard_normal((batch, unknowns)), "c": rng.standard_normal((batch, unknowns))}


def reference(arrays: Arrays) -> Reference:
    """Newton's method with the dense Jacobian I − diag(1 − t²) W until nothing moves, then one transposed solve."""
    import torch

    W, b, c = (torch.from_numpy(arrays[name]) for name in ("W", "b", "c"))
    identity = torch.eye(len(W), dtype=W.dtype)
    z = torch.zeros_like(b)
    for _ in range(50):
        t = torch.tanh(z @ W.T + b)
        step = torch.linalg.solve(identity - (1 - t**2)[..., :, None] * W, z - t)
        z = z - step
        if step.abs().max() <= 1e-14:
            break
    else:
        raise RuntimeError("the reference did not converge")
    s = 1 - z**2
    a = s * torch.linalg.solve((identity - s[..., :, None] * W).mT, c)
    return Reference(
        z.numpy(), {"W": (a[..., :, None] * z[..., None, :]).reshape(-1, *W.shape).sum(0).numpy(), "b": a.numpy()}
    )


def torchimplicit(p: dict[str, Any], solver: Any = None, compile: bool = False, **options: Any) -> Callable[[], Any]:
    import torch

    import torchimplicit as ti

    z0 = torch.zeros_like(p["b"])

    def g(z: Any, W: Any, b: Any) -> Any:
        return z - torch.tanh(z @ W.T + b)

    options = {"batch_ndim": 1, "batched": (False, True), "rtol": 0.0, "atol": TOLERANCE, **options}
    return in_graph(lambda: ti.root(g, z0, (p["W"], p["b"]), solver=solver, **options).value, compile)


def forced(p: dict[str, Any], method: str, steps: int) -> Callable[[], Any]:
    """So many steps, whatever the residual."""
    import torchimplicit as ti

    options: dict[str, Any] = {"adjoint": ti.Implicit(rtol=TOLERANCE), "on_failure": "ignore"}
    return torchimplicit(p, patient(method), atol=0.0, max_steps=steps, **options)


def newton_by_hand(jacobian: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Newton's method in a loop, and the implicit function theorem in the backward of a Function; batched or not."""
    import torch

    def g(z: Any, W: Any, b: Any) -> Any:
        return z - torch.tanh(z @ W.T + b)

    class Root(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, W: Any, b: Any) -> Any:
            z = torch.zeros_like(b)
            while True:
                r = g(z, W, b)
                if r.square().mean(-1).max() <= TOLERANCE**2:
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

    found: Callable[[Any, Any], Any] = Root.apply
    return found


def analytic_jacobian(z: Any, W: Any, b: Any) -> Any:
    import torch

    identity = torch.eye(len(W), dtype=W.dtype)
    return identity - (1 - torch.tanh(z @ W.T + b) ** 2)[..., :, None] * W


def g_jax(z: Any, args: Any) -> Any:
    import jax.numpy as jnp

    W, b = args
    return z - jnp.tanh(W @ z + b)


def _jax_by_hand() -> Callable[[dict[str, Any]], Any]:
    import jax
    import jax.numpy as jnp

    def g(z: Any, W: Any, b: Any) -> Any:
        return z - jnp.tanh(z @ W.T + b)

    def jacobian(z: Any, W: Any, b: Any) -> Any:
        return jnp.eye(len(W)) - (1 - jnp.tanh(z @ W.T + b) ** 2)[:, :, None] * W

    def linear_solve(A: Any, v: Any) -> Any:
        return jnp.linalg.solve(A, v[:, :, None])[:, :, 0]

    @jax.custom_vjp
    def root(W: Any, b: Any) -> Any:
        def step(state: tuple[Any, Any]) -> tuple[Any, Any]:
            z, r = state
            z = z - linear_solve(jacobian(z, W, b), r)
            return z, g(z, W, b)

        def unsolved(state: tuple[Any, Any]) -> Any:
            return (state[1] ** 2).mean(1).max() > TOLERANCE**2

        z0 = jnp.zeros_like(b)
        return jax.lax.while_loop(unsolved, step, (z0, g(z0, W, b)))[0]

    def forward(W: Any, b: Any) -> Any:
        z = root(W, b)
        return z, (z, W, b)

    def backward(kept: Any, v: Any) -> Any:
        z, W, b = kept
        u = linear_solve(jacobian(z, W, b).transpose(0, 2, 1), v)
        return jax.vjp(partial(g, z), W, b)[1](-u)

    root.defvjp(forward, backward)
    return lambda p: root(p["W"], p["b"])


def _optimistix(solver: Any) -> Callable[[dict[str, Any]], Any]:
    import jax
    import jax.numpy as jnp
    import optimistix

    def solve(W: Any, b: Any) -> Any:
        return optimistix.root_find(g_jax, solver, jnp.zeros_like(b), (W, b)).value

    return lambda p: jax.vmap(solve, in_axes=(None, 0))(p["W"], p["b"])


def _jaxopt(unknowns: int) -> Callable[[dict[str, Any]], Any]:
    import jax
    import jax.numpy as jnp
    from jaxopt import Broyden
    from jaxopt.linear_solve import solve_bicgstab

    solver = Broyden(
        lambda z, W, b: g_jax(z, (W, b)),
        maxiter=200,
        tol=TOLERANCE * unknowns**0.5,  # it compares the Euclidean norm
        implicit_diff_solve=partial(solve_bicgstab, tol=TOLERANCE),
    )

    def solve(W: Any, b: Any) -> Any:
        return solver.run(jnp.zeros_like(b), W, b).params

    return lambda p: jax.vmap(solve, in_axes=(None, 0))(p["W"], p["b"])


def _xitorch(p: dict[str, Any]) -> Callable[[], Any]:
    import torch
    from xitorch.optimize import rootfinder

    def g(z: Any, W: Any, b: Any) -> Any:
        return z - torch.tanh(z @ W.T + b)

    tolerance = TOLERANCE * p["b"].numel() ** 0.5  # it compares the Euclidean norm over the whole batch
    z0 = torch.zeros_like(p["b"])
    adjoint = {"method": "bicgstab", "rtol": TOLERANCE, "atol": TOLERANCE}
    options = {"method": "broyden1", "f_tol": tolerance, "alpha": -1.0, "bck_options": adjoint}
    return lambda: rootfinder(g, z0, (p["W"], p["b"]), **options)


def make(name: str, batch: int, unknowns: int) -> Workload:
    workload = Workload(
        name=name,
        title=f"{batch:,} roots of {unknowns} unknowns",
        description=f"""
Roots of z − tanh(W z + b_i) for {batch:,} vectors b_i of {unknowns} entries, float64,
from zero to {TOLERANCE:.0e}; gradients in W and in all b_i.
""",
        parameters=("W", "b"),
        arrays=partial(arrays, batch=batch, unknowns=unknowns),
        reference=reference,
    )

    @workload.torch("torchimplicit")
    def _(p: dict[str, Any]) -> Callable[[], Any]:
        return torchimplicit(p)

    @workload.torch("torchimplicit, chord")
    def _(p: dict[str, Any]) -> Callable[[], Any]:
        return torchimplicit(p, "chord")

    @workload.torch("torchimplicit, compiled", note=NOTE)
    def _(p: dict[str, Any]) -> Callable[[], Any]:
        return torchimplicit(p, "newton", compile=True)

    @workload.torch("torch by hand", note="Newton in a batched loop with the Jacobian written out")
    def _(p: dict[str, Any]) -> Callable[[], Any]:
        root = newton_by_hand(analytic_jacobian)
        return lambda: root(p["W"], p["b"])

    @workload.torch("torch by hand, jacrev", note="the same with `vmap(jacrev(g))`")
    def _(p: dict[str, Any]) -> Callable[[], Any]:
        import torch

        def g(z: Any, W: Any, b: Any) -> Any:
            return z - torch.tanh(W @ z + b)

        root = newton_by_hand(torch.vmap(torch.func.jacrev(g), in_dims=(0, None, 0)))
        return lambda: root(p["W"], p["b"])

    @workload.jax("JAX by hand", note="the loop with the Jacobian written out, compiled")
    def _() -> Callable[[dict[str, Any]], Any]:
        return _jax_by_hand()

    @workload.jax("optimistix, newton", packages=("optimistix", "lineax"), note="under jit and vmap")
    def _() -> Callable[[dict[str, Any]], Any]:
        import optimistix

        return _optimistix(optimistix.Newton(rtol=TOLERANCE, atol=TOLERANCE))

    @workload.jax(
        "optimistix, newton, loose",
        packages=("optimistix", "lineax"),
        note="the same to 1e-4: it judges the residual before its last step, which then is enough",
    )
    def _() -> Callable[[dict[str, Any]], Any]:
        import optimistix

        return _optimistix(optimistix.Newton(rtol=1e-4, atol=1e-4))

    @workload.jax("optimistix, chord", packages=("optimistix", "lineax"), note="under jit and vmap")
    def _() -> Callable[[dict[str, Any]], Any]:
        import optimistix

        return _optimistix(optimistix.Chord(rtol=TOLERANCE, atol=TOLERANCE))

    @workload.jax("jaxopt, broyden", packages=("jaxopt",), note="under jit and vmap, adjoint by BiCGStab")
    def _() -> Callable[[dict[str, Any]], Any]:
        return _jaxopt(unknowns)

    return workload


small_roots = make("small_roots", batch=10_000, unknowns=8)
roots64 = make("roots64", batch=256, unknowns=64)
roots256 = make("roots256", batch=32, unknowns=256)

small_roots.torch(
    "xitorch",
    packages=("xitorch",),
    note="sees one system of 80,000 unknowns; Broyden's first method, started with the identity as the Jacobian "
    "(its own choice, `alpha=None`, needs 3,218 evaluations in place of 18)",
)(_xitorch)
