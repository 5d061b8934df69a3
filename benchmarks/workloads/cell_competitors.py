"""Everybody who finds the fixed point of the tanh cell, whichever its arrays are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.compiled import NOTE, in_graph
from benchmarks.workload import Workload
from benchmarks.workloads.patient import patient

RTOL = 1e-5
MAX_STEPS = 400


def cell(p: dict[str, Any]) -> Callable[[Any], Any]:
    """The cell as a function of z alone, with the injection computed."""
    import torch

    W, injection = p["W"], torch.nn.functional.linear(p["x"], p["U"], p["b"])
    return lambda z: torch.tanh(torch.nn.functional.linear(z, W) + injection)


def jax_cell(z: Any, W: Any, injection: Any) -> Any:
    import jax.numpy as jnp

    return jnp.tanh(z @ W.T + injection)


def torchimplicit(p: dict[str, Any], solver: Any = None, **options: Any) -> Callable[[], Any]:
    import torch

    import torchimplicit as ti

    z0 = torch.zeros_like(p["c"])
    options = {"rtol": RTOL, "atol": 0.0, "max_steps": MAX_STEPS, **options}
    return lambda: ti.fixed_point(cell(p), z0, solver=solver, batch_ndim=1, **options).value


def forced(p: dict[str, Any], method: str, steps: int, **options: Any) -> Callable[[], Any]:
    """So many steps, whatever the residual; the backward stops as ever."""
    import torchimplicit as ti

    options = {"rtol": 0.0, "max_steps": steps, "adjoint": ti.Implicit(rtol=RTOL), "on_failure": "ignore", **options}
    return torchimplicit(p, solver=patient(method), **options)


def torchdeq(p: dict[str, Any], **options: Any) -> Callable[[], Any]:
    import torch
    from torchdeq import get_deq

    limits = {"f_max_iter": MAX_STEPS, "b_max_iter": MAX_STEPS, "f_tol": RTOL, "b_tol": RTOL}
    deq = get_deq(core="indexing", f_stop_mode="rel", b_stop_mode="rel", **{**limits, **options})
    deq.train()
    z0 = torch.zeros_like(p["c"])
    return lambda: deq(cell(p), z0)[0][-1]


def by_hand(p: dict[str, Any], steps: int | None = None) -> Callable[[], Any]:
    """A loop without gradient, one more step with it, and a hook that iterates the adjoint; or so many steps forward."""
    import torch

    def solved(previous: Any, z: Any) -> bool:
        return bool(((z - previous).norm(dim=1) <= RTOL * z.norm(dim=1)).all())

    def solve() -> Any:
        f = cell(p)
        with torch.no_grad():
            z = torch.zeros_like(p["c"])
            if steps is not None:
                for _ in range(steps):
                    z = f(z)
            else:
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


def jax_by_hand() -> Callable[[dict[str, Any]], Any]:
    """Two while loops, the forward one and that of the adjoint, with one linearisation at the solution."""
    import jax
    import jax.numpy as jnp

    def iterate(f: Callable[[Any], Any], z: Any) -> Any:
        def unsolved(state: tuple[Any, Any]) -> Any:
            previous, z = state
            norm = jnp.linalg.norm
            return (norm(z - previous, axis=1) > RTOL * norm(z, axis=1)).any()

        return jax.lax.while_loop(unsolved, lambda state: (state[1], f(state[1])), (z, f(z)))[1]

    @jax.custom_vjp
    def solve(z0: Any, W: Any, injection: Any) -> Any:
        return iterate(lambda z: jax_cell(z, W, injection), z0)

    def forward(z0: Any, W: Any, injection: Any) -> Any:
        z = solve(z0, W, injection)
        return z, (z, W, injection)

    def backward(kept: Any, v: Any) -> Any:
        _, pull = jax.vjp(jax_cell, *kept)
        u = iterate(lambda u: pull(u)[0] + v, v)
        _, W_bar, injection_bar = pull(u)
        return None, W_bar, injection_bar

    solve.defvjp(forward, backward)
    return lambda p: solve(jnp.zeros_like(p["c"]), p["W"], p["x"] @ p["U"].T + p["b"])


def jaxopt(rms: float, anderson: bool) -> Callable[[dict[str, Any]], Any]:
    """The tolerance is absolute and for the Euclidean norm over the whole batch; `rms` is that of the solution."""
    import jax.numpy as jnp
    from jaxopt import AndersonAcceleration, FixedPointIteration
    from jaxopt.linear_solve import solve_bicgstab

    method: Any = AndersonAcceleration if anderson else FixedPointIteration

    def solve(p: dict[str, Any]) -> Any:
        solver = method(
            jax_cell,
            maxiter=MAX_STEPS,
            tol=RTOL * rms * p["c"].size ** 0.5,
            implicit_diff=True,
            implicit_diff_solve=partial(solve_bicgstab, tol=RTOL),
        )
        return solver.run(jnp.zeros_like(p["c"]), p["W"], p["x"] @ p["U"].T + p["b"]).params

    return solve


def optimistix(rms: float, linear_solver: Any, over_samples: bool = False) -> Callable[[dict[str, Any]], Any]:
    import jax
    import jax.numpy as jnp
    import optimistix

    solver: Any = optimistix.FixedPointIteration(rtol=0.0, atol=RTOL * rms, norm=optimistix.rms_norm)
    adjoint = optimistix.ImplicitAdjoint(linear_solver=linear_solver)

    def solve(z0: Any, W: Any, injection: Any) -> Any:
        def f(z: Any, args: Any) -> Any:
            return jax_cell(z, *args)

        return optimistix.fixed_point(f, solver, z0, (W, injection), max_steps=MAX_STEPS, adjoint=adjoint).value

    each = jax.vmap(solve, in_axes=(0, None, 0)) if over_samples else solve
    return lambda p: each(jnp.zeros_like(p["c"]), p["W"], p["x"] @ p["U"].T + p["b"])


def compete(workload: Workload, rms: float) -> None:
    """Register them all. `rms` is that of the solution: where a tolerance is absolute, RTOL times it means the same."""

    @workload.torch("torchimplicit")
    def _(p: dict[str, Any]) -> Callable[[], Any]:
        return torchimplicit(p)

    @workload.torch("torchimplicit, compiled", note=NOTE)
    def _(p: dict[str, Any]) -> Callable[[], Any]:
        return in_graph(torchimplicit(p))

    @workload.torch("torchimplicit, picard")
    def _(p: dict[str, Any]) -> Callable[[], Any]:
        return torchimplicit(p, solver="picard")

    @workload.torch("torchimplicit, anderson")
    def _(p: dict[str, Any]) -> Callable[[], Any]:
        return torchimplicit(p, solver="anderson")

    @workload.torch(
        "torchdeq, exact", packages=("torchdeq",), note="`ift=True`, with its default solver, the plain iteration"
    )
    def _(p: dict[str, Any]) -> Callable[[], Any]:
        return torchdeq(p, ift=True)

    @workload.torch("torchdeq, exact, anderson", packages=("torchdeq",))
    def _(p: dict[str, Any]) -> Callable[[], Any]:
        return torchdeq(p, ift=True, f_solver="anderson", b_solver="anderson")

    @workload.torch("torchdeq, exact, broyden", packages=("torchdeq",))
    def _(p: dict[str, Any]) -> Callable[[], Any]:
        return torchdeq(p, ift=True, f_solver="broyden", b_solver="broyden")

    @workload.torch(
        "torchdeq, default",
        packages=("torchdeq",),
        note="its default gradient is that of one step of the cell, not the exact one",
    )
    def _(p: dict[str, Any]) -> Callable[[], Any]:
        return torchdeq(p)

    @workload.torch(
        "torch by hand", note="a loop without gradient, one more step with it, and a hook that iterates the adjoint"
    )
    def _(p: dict[str, Any]) -> Callable[[], Any]:
        return by_hand(p)

    @workload.jax("JAX by hand", note="two while loops, the forward one and that of the adjoint")
    def _() -> Callable[[dict[str, Any]], Any]:
        return jax_by_hand()

    @workload.jax("jaxopt", packages=("jaxopt",), note="FixedPointIteration with implicit differentiation by BiCGStab")
    def _() -> Callable[[dict[str, Any]], Any]:
        return jaxopt(rms, anderson=False)

    @workload.jax("jaxopt, anderson", packages=("jaxopt",), note="AndersonAcceleration, adjoint by BiCGStab")
    def _() -> Callable[[dict[str, Any]], Any]:
        return jaxopt(rms, anderson=True)

    @workload.jax(
        "optimistix",
        packages=("optimistix", "lineax"),
        note="FixedPointIteration, the whole batch as one unknown, adjoint by GMRES (lineax's BiCGStab reports a "
        "breakdown in float32: it takes a negative coefficient for a vanishing one)",
    )
    def _() -> Callable[[dict[str, Any]], Any]:
        from lineax import GMRES
        from optimistix import rms_norm

        return optimistix(rms, GMRES(rtol=RTOL, atol=RTOL, norm=rms_norm, restart=12))

    @workload.jax(
        "optimistix, vmap",
        packages=("optimistix", "lineax"),
        note="FixedPointIteration under vmap; its default adjoint builds and factorises one dense Jacobian a sample",
    )
    def _() -> Callable[[dict[str, Any]], Any]:
        from lineax import AutoLinearSolver

        return optimistix(rms, AutoLinearSolver(well_posed=None), over_samples=True)
