"""A million scalar equations: bound by memory traffic and by how many passes over the data a step makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.compiled import NOTE, in_graph
from benchmarks.workload import Arrays, Reference, Workload

PAIRS = 1_000_000
TOLERANCE = 1e-12


def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    M, e = rng.uniform(0, 2 * np.pi, PAIRS), rng.uniform(0, 0.95, PAIRS)
    # From Danby's start Newton's method converges for every eccentricity.
    return {"M": M, "e": e, "start": M + 0.85 * e * np.sign(np.sin(M)), "c": rng.standard_normal(PAIRS)}


def reference(arrays: Arrays) -> Reference:
    """Newton's method until rounding; E − e sin E grows with E, so a small residual means the only root."""
    M, e, E, c = (arrays[name] for name in ("M", "e", "start", "c"))
    for _ in range(20):
        E = E - (E - e * np.sin(E) - M) / (1 - e * np.cos(E))
    if np.abs(E - e * np.sin(E) - M).max() > 1e-14:
        raise RuntimeError("the reference did not converge")
    a = c / (1 - e * np.cos(E))
    return Reference(E, {"M": a, "e": a * np.sin(E)})


workload = Workload(
    name="kepler",
    title="Kepler's equation, a million times",
    description=f"""
Roots of E − e sin E − M for {PAIRS:,} pairs (M, e), e up to 0.95, float64, to a residual of {TOLERANCE:.0e}; gradients
in all M and e. Those that start somewhere start at M ± 0.85 e (Danby).
""",
    parameters=("M", "e"),
    arrays=arrays,
    reference=reference,
)


def _torchimplicit(p: dict[str, Any], compile: bool) -> Callable[[], Any]:
    import torch

    import torchimplicit as ti

    def g(E: Any, M: Any, e: Any) -> Any:
        return E - e * torch.sin(E) - M

    options: dict[str, Any] = {"batched": (True, True), "rtol": 0.0, "atol": TOLERANCE}
    solver = "newton" if compile else None
    solve = lambda: ti.root(g, p["start"], (p["M"], p["e"]), solver=solver, batch_ndim=1, **options).value  # noqa: E731
    return in_graph(solve, compile)


@workload.torch("torchimplicit")
def torchimplicit(p: dict[str, Any]) -> Callable[[], Any]:
    return _torchimplicit(p, compile=False)


@workload.torch("torchimplicit, compiled", note=NOTE)
def torchimplicit_compiled(p: dict[str, Any]) -> Callable[[], Any]:
    return _torchimplicit(p, compile=True)


def _by_hand(p: dict[str, Any], compile: bool) -> Callable[[], Any]:
    """Newton's method with the derivative written out, all pairs until the last has converged."""
    import torch

    def step(E: Any, M: Any, e: Any) -> tuple[Any, Any]:
        r = E - e * torch.sin(E) - M
        return E - r / (1 - e * torch.cos(E)), r.abs().max()

    def pullback(E: Any, e: Any, v: Any) -> tuple[Any, Any]:
        a = v / (1 - e * torch.cos(E))
        return a, a * torch.sin(E)

    if compile:
        step, pullback = torch.compile(step), torch.compile(pullback)

    class Kepler(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, M: Any, e: Any) -> Any:
            E = p["start"]
            while True:
                E_new, residual = step(E, M, e)
                if residual <= TOLERANCE:
                    break
                E = E_new
            ctx.save_for_backward(E, e)
            return E

        @staticmethod
        def backward(ctx: Any, *cotangents: Any) -> Any:
            E, e = ctx.saved_tensors
            return pullback(E, e, cotangents[0])

    return lambda: Kepler.apply(p["M"], p["e"])


@workload.torch("torch by hand", note="the derivative written out, eager")
def by_hand(p: dict[str, Any]) -> Callable[[], Any]:
    return _by_hand(p, compile=False)


@workload.torch("torch by hand, compiled", note="the same, the step and the gradient under `torch.compile`")
def by_hand_compiled(p: dict[str, Any]) -> Callable[[], Any]:
    return _by_hand(p, compile=True)


@workload.jax("JAX by hand", note="the same in a while loop")
def jax_by_hand() -> Callable[[dict[str, Any]], Any]:
    import jax
    import jax.numpy as jnp

    @jax.custom_vjp
    def kepler(M: Any, e: Any, start: Any) -> Any:
        def residual(E: Any) -> Any:
            return E - e * jnp.sin(E) - M

        def step(state: tuple[Any, Any]) -> tuple[Any, Any]:
            E, r = state
            E = E - r / (1 - e * jnp.cos(E))
            return E, residual(E)

        def unsolved(state: tuple[Any, Any]) -> Any:
            return jnp.abs(state[1]).max() > TOLERANCE

        return jax.lax.while_loop(unsolved, step, (start, residual(start)))[0]

    def forward(M: Any, e: Any, start: Any) -> Any:
        E = kepler(M, e, start)
        return E, (E, e)

    def backward(kept: Any, v: Any) -> Any:
        E, e = kept
        a = v / (1 - e * jnp.cos(E))
        return a, a * jnp.sin(E), None

    kepler.defvjp(forward, backward)
    return lambda p: kepler(p["M"], p["e"], p["start"])


def _g_jax(E: Any, args: Any) -> Any:
    import jax.numpy as jnp

    M, e = args
    return E - e * jnp.sin(E) - M


def _optimistix_newton(tolerance: float) -> Callable[[dict[str, Any]], Any]:
    import jax
    import optimistix

    solver: Any = optimistix.Newton(rtol=tolerance, atol=tolerance)

    def solve(M: Any, e: Any, start: Any) -> Any:
        return optimistix.root_find(_g_jax, solver, start, (M, e)).value

    return lambda p: jax.vmap(solve)(p["M"], p["e"], p["start"])


@workload.jax("optimistix, newton", packages=("optimistix", "lineax"), note="under jit and vmap")
def optimistix_newton() -> Callable[[dict[str, Any]], Any]:
    return _optimistix_newton(TOLERANCE)


@workload.jax(
    "optimistix, newton, loose",
    packages=("optimistix", "lineax"),
    note="the same to 1e-6: it judges the residual before its last step, which then is enough",
)
def optimistix_newton_loose() -> Callable[[dict[str, Any]], Any]:
    return _optimistix_newton(TOLERANCE**0.5)


@workload.jax(
    "optimistix, bisection", packages=("optimistix", "lineax"), note="under jit and vmap, from M − e to M + e"
)
def optimistix_bisection() -> Callable[[dict[str, Any]], Any]:
    import jax
    import optimistix

    solver: Any = optimistix.Bisection(rtol=TOLERANCE, atol=TOLERANCE)

    def solve(M: Any, e: Any, start: Any) -> Any:
        bracket = jax.lax.stop_gradient({"lower": M - e, "upper": M + e})
        return optimistix.root_find(_g_jax, solver, start, (M, e), options=bracket).value

    return lambda p: jax.vmap(solve)(p["M"], p["e"], p["start"])


@workload.torch(
    "SciPy, Chandrupatla",
    packages=("scipy",),
    note="`scipy.optimize.elementwise.find_root`, from M − e to M + e; forward only",
    forward_only=True,
)
def scipy_chandrupatla(p: dict[str, Any]) -> Callable[[], Any]:
    from scipy.optimize.elementwise import find_root

    M, e = (p[name].detach().numpy() for name in ("M", "e"))

    def g(E: Any, M: Any, e: Any) -> Any:
        return E - e * np.sin(E) - M

    tolerances = {"xatol": TOLERANCE, "xrtol": TOLERANCE, "fatol": TOLERANCE, "frtol": 0.0}
    return lambda: find_root(g, (M - e, M + e), args=(M, e), tolerances=tolerances).x
