"""Ten thousand small nonlinear fits and how their parameters depend on the data, by the exact Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.compiled import NOTE, in_graph
from benchmarks.workload import Arrays, Reference, Workload

FITS, POINTS = 10_000, 50
RTOL = 1e-8
START = (1.0, 1.0, 0.0)


def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    t = np.linspace(0, 4, POINTS)
    a, b, c = (rng.uniform(*limits, (FITS, 1)) for limits in ((1.0, 3.0), (0.5, 2.0), (-0.5, 0.5)))
    y = a * np.exp(-b * t) + c + 0.05 * rng.standard_normal((FITS, POINTS))
    return {"t": t, "y": y, "start": np.tile(START, (FITS, 1)), "c": rng.standard_normal((FITS, 3))}


def _derivatives(z: np.ndarray, t: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Residuals (fits, points), their Jacobian (fits, points, 3) and the Hessian JᵀJ + Σ rᵢ ∇²rᵢ (fits, 3, 3)."""
    a, b, c = (z[:, k : k + 1] for k in range(3))
    decay = np.exp(-b * t)
    r = a * decay + c - y
    J = np.stack([decay, -a * t * decay, np.ones_like(decay)], axis=-1)
    H = J.transpose(0, 2, 1) @ J
    H[:, 0, 1] += (r * -t * decay).sum(1)
    H[:, 1, 0] = H[:, 0, 1]
    H[:, 1, 1] += (r * a * t**2 * decay).sum(1)
    return r, J, H


def reference(arrays: Arrays) -> Reference:
    """Gauss–Newton with halved steps to come near, Newton with the written-out Hessian to the end."""
    t, y = arrays["t"], arrays["y"]
    z = arrays["start"]

    def cost(z: np.ndarray) -> np.ndarray:
        return ((z[:, :1] * np.exp(-z[:, 1:2] * t) + z[:, 2:] - y) ** 2).sum(1)

    for _ in range(30):
        r, J, _ = _derivatives(z, t, y)
        step = np.linalg.solve(J.transpose(0, 2, 1) @ J, (r[:, None] @ J)[:, 0, :, None])[..., 0]
        while (worse := cost(z - step) > cost(z) * (1 + 1e-12)).any():
            step[worse] /= 2
        z = z - step
        if np.abs(step).max() < 1e-6:
            break
    for _ in range(3):
        r, J, H = _derivatives(z, t, y)
        z = z - np.linalg.solve(H, (r[:, None] @ J)[:, 0, :, None])[..., 0]
    r, J, H = _derivatives(z, t, y)
    if np.abs(r[:, None] @ J).max() > 1e-12 or np.linalg.eigvalsh(H).min() <= 0:
        raise RuntimeError("the reference did not converge to minima")
    u = np.linalg.solve(H, arrays["c"][..., None])
    return Reference(z, {"y": (J @ u)[..., 0]})


workload = Workload(
    name="fits",
    title="10,000 nonlinear fits",
    description=f"""
Least-squares fits of a·exp(−b t) + c to {FITS:,} series y of {POINTS} points each, float64, from (a, b, c) = {START};
gradient in all y, with the exact Hessian. Everybody stops at about {RTOL:.0e}, be it of the part of Jᵀr whose terms do
not cancel (torchimplicit), of the gradient against that at the start (jaxopt, by hand) or of the step against the parameters (the
others). pytorch-minimize fits
one series at a time, which takes more than ten milliseconds each, and is left out.
""",
    parameters=("y",),
    arrays=arrays,
    reference=reference,
)


def _torchimplicit(p: dict[str, Any], solver: Any, compile: bool = False) -> Callable[[], Any]:
    import torch

    import torchimplicit as ti

    def r(z: Any, t: Any, y: Any) -> Any:
        a, b, c = z.unsqueeze(-1).unbind(-2)
        return a * torch.exp(-b * t) + c - y

    args, batched = (p["t"], p["y"]), (False, True)
    options: dict[str, Any] = {"batch_ndim": 1, "batched": batched, "rtol": RTOL, "atol": 0.0}
    return in_graph(lambda: ti.least_squares(r, p["start"], args, solver=solver, **options).value, compile)


@workload.torch("torchimplicit, LM")
def torchimplicit_lm(p: dict[str, Any]) -> Callable[[], Any]:
    return _torchimplicit(p, "levenberg_marquardt")


@workload.torch("torchimplicit, LM, compiled", note=NOTE)
def torchimplicit_compiled(p: dict[str, Any]) -> Callable[[], Any]:
    return _torchimplicit(p, "levenberg_marquardt", compile=True)


@workload.torch("torchimplicit, default solver")
def torchimplicit_default(p: dict[str, Any]) -> Callable[[], Any]:
    return _torchimplicit(p, None)


@workload.torch(
    "torch by hand", note="Levenberg–Marquardt with the Jacobian and the Hessian written out, all fits at once"
)
def by_hand(p: dict[str, Any]) -> Callable[[], Any]:
    import torch

    t, start = p["t"], p["start"]

    def model(z: Any) -> tuple[Any, Any, Any]:
        a, b, c = z.unsqueeze(-1).unbind(-2)
        decay = torch.exp(-b * t)
        return a, decay, a * decay + c

    def jacobian(a: Any, decay: Any) -> Any:
        return torch.stack([decay, -a * t * decay, torch.ones_like(decay)], dim=-1)

    class Fit(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, y: Any) -> Any:
            z, damping = start, torch.full((len(y), 1), 1e-3, dtype=y.dtype)
            a, decay, fitted = model(z)
            r = fitted - y
            cost = r.square().sum(1, keepdim=True)
            bound = None
            while True:
                J = jacobian(a, decay)
                gradient = (r.unsqueeze(1) @ J).squeeze(1)
                norm = gradient.norm(dim=1)
                bound = RTOL * norm if bound is None else bound
                if (norm <= bound).all():
                    break
                A = J.mT @ J
                diagonal = A.diagonal(dim1=1, dim2=2)
                diagonal += damping * diagonal
                tried = z - torch.linalg.solve(A, gradient)
                a_tried, decay_tried, fitted = model(tried)
                r_tried = fitted - y
                cost_tried = r_tried.square().sum(1, keepdim=True)
                better = cost_tried <= cost * (1 + 1e-14)
                damping = torch.where(better, damping / 10, damping * 10)
                z, cost = torch.where(better, tried, z), torch.where(better, cost_tried, cost)
                r, a, decay = (
                    torch.where(better, r_tried, r),
                    torch.where(better, a_tried, a),
                    torch.where(better, decay_tried, decay),
                )
            ctx.save_for_backward(J, r, a, decay)
            return z

        @staticmethod
        def backward(ctx: Any, *cotangents: Any) -> Any:
            J, r, a, decay = ctx.saved_tensors
            H = J.mT @ J
            mixed = -(r * t * decay).sum(1)
            H[:, 0, 1] += mixed
            H[:, 1, 0] += mixed
            H[:, 1, 1] += (r * a * t**2 * decay).sum(1)
            return (J @ torch.linalg.solve(H, cotangents[0]).unsqueeze(-1)).squeeze(-1)

    return lambda: Fit.apply(p["y"])


def _r_jax(z: Any, args: Any) -> Any:
    import jax.numpy as jnp

    t, y = args
    return z[0] * jnp.exp(-z[1] * t) + z[2] - y


@workload.jax("optimistix", packages=("optimistix", "lineax"), note="LevenbergMarquardt under jit and vmap")
def optimistix_lm() -> Callable[[dict[str, Any]], Any]:
    import jax
    import optimistix

    solver: Any = optimistix.LevenbergMarquardt(rtol=RTOL, atol=RTOL)

    def solve(start: Any, t: Any, y: Any) -> Any:
        return optimistix.least_squares(_r_jax, solver, start, (t, y)).value

    return lambda p: jax.vmap(solve, in_axes=(0, None, 0))(p["start"], p["t"], p["y"])


@workload.jax("jaxopt", packages=("jaxopt",), note="LevenbergMarquardt under jit and vmap, adjoint by Cholesky")
def jaxopt_lm() -> Callable[[dict[str, Any]], Any]:
    import jax
    from jaxopt import LevenbergMarquardt
    from jaxopt.linear_solve import solve_cholesky

    # Its tolerance is absolute; with this one its errors are like the others'.
    solver = LevenbergMarquardt(
        lambda z, t, y: _r_jax(z, (t, y)),
        stop_criterion="grad-l2-norm",
        tol=RTOL,
        maxiter=100,
        implicit_diff_solve=solve_cholesky,
    )

    def solve(start: Any, t: Any, y: Any) -> Any:
        return solver.run(start, t, y).params

    return lambda p: jax.vmap(solve, in_axes=(0, None, 0))(p["start"], p["t"], p["y"])


@workload.torch(
    "SciPy, loop",
    packages=("scipy",),
    note="`scipy.optimize.leastsq` (MINPACK) with the Jacobian written out, one fit after the other; forward only",
    forward_only=True,
)
def scipy_loop(p: dict[str, Any]) -> Callable[[], Any]:
    from scipy.optimize import leastsq

    t, ys, starts = (p[name].detach().numpy() for name in ("t", "y", "start"))

    def r(z: Any, y: Any) -> Any:
        return z[0] * np.exp(-z[1] * t) + z[2] - y

    ones = np.ones(POINTS)

    def jacobian(z: Any, y: Any) -> Any:
        decay = np.exp(-z[1] * t)
        return np.stack([decay, -z[0] * t * decay, ones])

    options = {"Dfun": jacobian, "col_deriv": True, "ftol": RTOL, "xtol": RTOL, "gtol": RTOL}
    return lambda: np.stack([leastsq(r, start, (y,), **options)[0] for start, y in zip(starts, ys)])
