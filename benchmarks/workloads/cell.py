"""A wide deep-equilibrium cell: the forward is bound by one matrix product per step, so the number of steps and what is
done between the products decide."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.workload import Workload
from benchmarks.workloads import tanh_cell

UNITS, BATCH, FEATURES = 512, 128, 256
RTOL = 1e-5
RMS = 0.44  # of the solution: where a peer's tolerance is absolute, RTOL times this means the same


def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    W = rng.standard_normal((UNITS, UNITS))
    W *= 0.95 / np.linalg.norm(W, 2)
    return tanh_cell.arrays(rng, W, batch=BATCH, features=FEATURES, scale=0.5, dtype=np.float32)


workload = Workload(
    name="cell",
    title="A 512-unit tanh cell",
    description=f"""
Fixed point of tanh(z Wᵀ + x Uᵀ + b), {UNITS} units, batch {BATCH}, float32, ‖W‖₂ = 0.95; gradients in W, U, b and x.
Everybody starts at zero, computes the injection x Uᵀ + b once, and stops at a relative residual of {RTOL:.0e},
forward and backward.
""",
    parameters=tanh_cell.PARAMETERS,
    arrays=arrays,
    reference=tanh_cell.reference,
)


def _cell(p: dict[str, Any]) -> Callable[[Any], Any]:
    """The cell as a function of z alone, with the injection computed."""
    import torch

    W, injection = p["W"], torch.nn.functional.linear(p["x"], p["U"], p["b"])
    return lambda z: torch.tanh(torch.nn.functional.linear(z, W) + injection)


def _torchimplicit(p: dict[str, Any], **options: Any) -> Callable[[], Any]:
    import torch

    import torchimplicit as ti

    z0 = torch.zeros_like(p["c"])
    return lambda: ti.fixed_point(_cell(p), z0, batch_ndim=1, rtol=RTOL, atol=0.0, **options).value


@workload.torch("torchimplicit")
def torchimplicit(p: dict[str, Any]) -> Callable[[], Any]:
    return _torchimplicit(p)


@workload.torch("torchimplicit, picard")
def torchimplicit_picard(p: dict[str, Any]) -> Callable[[], Any]:
    return _torchimplicit(p, solver="picard")


@workload.torch("torchimplicit, anderson")
def torchimplicit_anderson(p: dict[str, Any]) -> Callable[[], Any]:
    return _torchimplicit(p, solver="anderson")


def _torchdeq(p: dict[str, Any], **options: Any) -> Callable[[], Any]:
    import torch
    from torchdeq import get_deq

    limits = {"f_max_iter": 200, "b_max_iter": 200, "f_tol": RTOL, "b_tol": RTOL}
    deq = get_deq(core="indexing", f_stop_mode="rel", b_stop_mode="rel", **limits, **options)
    deq.train()
    z0 = torch.zeros_like(p["c"])
    return lambda: deq(_cell(p), z0)[0][-1]


@workload.torch(
    "torchdeq, exact", packages=("torchdeq",), note="`ift=True`, with its default solver, the plain iteration"
)
def torchdeq_exact(p: dict[str, Any]) -> Callable[[], Any]:
    return _torchdeq(p, ift=True)


@workload.torch("torchdeq, exact, anderson", packages=("torchdeq",))
def torchdeq_anderson(p: dict[str, Any]) -> Callable[[], Any]:
    return _torchdeq(p, ift=True, f_solver="anderson", b_solver="anderson")


@workload.torch(
    "torchdeq, default",
    packages=("torchdeq",),
    note="its default gradient is that of one step of the cell, not the exact one",
)
def torchdeq_default(p: dict[str, Any]) -> Callable[[], Any]:
    return _torchdeq(p)


@workload.torch(
    "torch by hand", note="a loop without gradient, one more step with it, and a hook that iterates the adjoint"
)
def by_hand(p: dict[str, Any]) -> Callable[[], Any]:
    import torch

    def solved(previous: Any, z: Any) -> bool:
        return bool(((z - previous).norm(dim=1) <= RTOL * z.norm(dim=1)).all())

    def solve() -> Any:
        f = _cell(p)
        with torch.no_grad():
            z = torch.zeros_like(p["c"])
            while True:
                previous, z = z, f(z)
                if solved(previous, z):
                    break
        if not torch.is_grad_enabled():
            return z
        start = z.requires_grad_()
        end = f(start)

        def adjoint(v: Any) -> Any:
            hook.remove()
            u = v
            while True:
                previous, u = u, torch.autograd.grad(end, start, u, retain_graph=True)[0] + v
                if solved(previous, u):
                    return u

        hook = end.register_hook(adjoint)
        return end

    return solve


def _jax_cell(z: Any, W: Any, injection: Any) -> Any:
    import jax.numpy as jnp

    return jnp.tanh(z @ W.T + injection)


@workload.jax("jaxopt", packages=("jaxopt",), note="FixedPointIteration with implicit differentiation by BiCGStab")
def jaxopt_bicgstab() -> Callable[[dict[str, Any]], Any]:
    import jax.numpy as jnp
    from jaxopt import FixedPointIteration
    from jaxopt.linear_solve import solve_bicgstab

    solver = FixedPointIteration(
        _jax_cell,
        maxiter=200,
        tol=RTOL * RMS * (BATCH * UNITS) ** 0.5,  # it compares the Euclidean norm over the whole batch
        implicit_diff=True,
        implicit_diff_solve=partial(solve_bicgstab, tol=RTOL),
    )
    return lambda p: solver.run(jnp.zeros_like(p["c"]), p["W"], p["x"] @ p["U"].T + p["b"]).params


def _optimistix(linear_solver: Any) -> Callable[[Any, dict[str, Any], Any], Any]:
    import optimistix

    solver: Any = optimistix.FixedPointIteration(rtol=0.0, atol=RTOL * RMS, norm=optimistix.rms_norm)
    adjoint = optimistix.ImplicitAdjoint(linear_solver=linear_solver)

    def solve(z0: Any, W: Any, injection: Any) -> Any:
        def f(z: Any, args: Any) -> Any:
            return _jax_cell(z, *args)

        return optimistix.fixed_point(f, solver, z0, (W, injection), max_steps=200, adjoint=adjoint).value

    return solve


@workload.jax(
    "optimistix",
    packages=("optimistix", "lineax"),
    note="FixedPointIteration, the whole batch as one unknown, adjoint by GMRES (lineax's BiCGStab reports a breakdown "
    "in float32: it takes a negative coefficient for a vanishing one)",
)
def optimistix_gmres() -> Callable[[dict[str, Any]], Any]:
    import jax.numpy as jnp
    import lineax
    import optimistix

    solve = _optimistix(lineax.GMRES(rtol=RTOL, atol=RTOL, norm=optimistix.rms_norm, restart=12))
    return lambda p: solve(jnp.zeros_like(p["c"]), p["W"], p["x"] @ p["U"].T + p["b"])


@workload.jax(
    "optimistix, vmap",
    packages=("optimistix", "lineax"),
    note="FixedPointIteration under vmap; its default adjoint builds and factorises one dense Jacobian a sample",
)
def optimistix_vmap() -> Callable[[dict[str, Any]], Any]:
    import jax
    import jax.numpy as jnp
    import lineax

    solve = jax.vmap(_optimistix(lineax.AutoLinearSolver(well_posed=None)), in_axes=(0, None, 0))
    return lambda p: solve(jnp.zeros_like(p["c"]), p["W"], p["x"] @ p["U"].T + p["b"])
