"""Value and gradient of a problem by each competitor, at a tolerance."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.work_precision.problems import Problem

MAX_STEPS = 2000


def ours(problem: Problem, solver: str, tolerance: float) -> Callable[..., Any]:
    import torch

    import torchimplicit as ti

    def f(z: Any, *p: Any) -> Any:
        return problem.f(torch, z, *p)

    options: dict[str, Any] = {
        "solver": solver,
        "rtol": tolerance,
        "atol": 0.0,
        "max_steps": MAX_STEPS,
        "on_failure": "ignore",
    }
    options |= {"batch_ndim": problem.batch_ndim, "batched": problem.batched or None}
    z0 = torch.from_numpy(problem.z0)
    return lambda *p: getattr(ti, problem.kind)(f, z0, p, **options).value


def torch_peer(problem: Problem, name: str, tolerance: float) -> Callable[..., Any]:
    import torch

    z0 = torch.from_numpy(problem.z0)
    if name.startswith("TorchDEQ"):
        from torchdeq import get_deq

        limits = {
            "f_tol": tolerance,
            "b_tol": tolerance,
            "f_stop_mode": "rel",
            "b_stop_mode": "rel",
            "f_max_iter": 400,
            "b_max_iter": 400,
        }
        deq = get_deq(core="indexing", f_solver="anderson", b_solver="anderson", ift=True, **limits)
        deq.train()
        return lambda *p: deq(lambda z: problem.f(torch, z, *p), z0)[0][-1]
    if name.startswith("xitorch"):
        from xitorch.optimize import rootfinder

        stop = {"f_tol": tolerance, "x_tol": tolerance, "maxiter": 300}
        return lambda *p: rootfinder(
            lambda z, *p: problem.f(torch, z, *p),
            z0,
            params=p,
            method="broyden1",
            bck_options={"method": "bicgstab", "rtol": tolerance},
            **stop,
        )
    from torchopt import linear_solve
    from torchopt.diff import implicit

    def objective(z: Any, *p: Any) -> Any:
        return problem.f(torch, z, *p)

    @implicit.custom_root(
        torch.func.grad(objective), argnums=1, has_aux=False, solve=linear_solve.solve_normal_cg(rtol=tolerance)
    )
    def descend(z0: Any, *p: Any) -> Any:
        z = z0.clone().requires_grad_()
        optimizer = torch.optim.Adam([z], lr=0.05)
        for _ in range(MAX_STEPS):
            with torch.enable_grad():
                value = objective(z, *p)
            (z.grad,) = torch.autograd.grad(value, z)
            if z.grad.norm() <= tolerance:
                break
            optimizer.step()
        return z

    return lambda *p: descend(z0, *p)


def jax_peer(problem: Problem, name: str, tolerance: float) -> Callable[..., Any]:
    import jax
    import jax.numpy as jnp

    library, method = name.split(", ")

    def f(z: Any, *p: Any) -> Any:
        return problem.f(jnp, z, *p)

    if library == "jaxopt":
        import jaxopt

        if method == "plain steps":
            backward = partial(jaxopt.linear_solve.solve_bicgstab, tol=tolerance)
            solver = jaxopt.FixedPointIteration(f, maxiter=MAX_STEPS, tol=tolerance, implicit_diff_solve=backward)
        elif method == "LBFGS":
            backward = partial(jaxopt.linear_solve.solve_cg, tol=tolerance)
            solver = jaxopt.LBFGS(f, maxiter=MAX_STEPS, tol=tolerance, implicit_diff_solve=backward)
        else:
            solve = jaxopt.linear_solve.solve_cholesky
            solver = jaxopt.LevenbergMarquardt(
                f, maxiter=MAX_STEPS, tol=tolerance, stop_criterion="grad-l2-norm", implicit_diff_solve=solve
            )

        def one(z: Any, *p: Any) -> Any:
            return solver.run(z, *p).params

    else:
        import optimistix

        entry, make = {
            "plain steps": (optimistix.fixed_point, optimistix.FixedPointIteration),
            "Newton": (optimistix.root_find, optimistix.Newton),
            "chord": (optimistix.root_find, optimistix.Chord),
            "bisection": (optimistix.root_find, optimistix.Bisection),
            "BFGS": (optimistix.minimise, optimistix.BFGS),
            "Levenberg–Marquardt": (optimistix.least_squares, optimistix.LevenbergMarquardt),
        }[method]
        solver = make(rtol=tolerance, atol=tolerance)
        options: dict[str, Any] = {"max_steps": MAX_STEPS, "throw": False}
        if method == "plain steps":  # its default would form a matrix of all unknowns of the batch
            import lineax

            linear = lineax.GMRES(rtol=tolerance, atol=tolerance)
            options["adjoint"] = optimistix.ImplicitAdjoint(linear_solver=linear)

        def one(z: Any, *p: Any) -> Any:
            around = {"options": {"lower": z - 1, "upper": z + 1}} if method == "bisection" else {}
            return entry(lambda z, p: f(z, *p), solver, z, p, **options, **around).value

    z0 = jnp.asarray(problem.z0)
    together = not problem.batch_ndim or method == "plain steps"
    axes = (0, *(0 if row else None for row in problem.batched))
    every = one if together else jax.vmap(one, axes)
    return lambda *p: every(z0, *p)


def gradient(problem: Problem, name: str, tolerance: float, c: np.ndarray) -> Callable[[], tuple[np.ndarray, ...]]:
    """Value and gradient, ready to be called."""
    if name in problem.ours or name.startswith(("TorchDEQ", "xitorch", "TorchOpt")):
        import torch

        solve = (ours if name in problem.ours else torch_peer)(problem, name, tolerance)
        weights = torch.from_numpy(c)

        def run() -> tuple[np.ndarray, ...]:
            p = [torch.from_numpy(array).requires_grad_() for array in problem.parameters]
            found = torch.autograd.grad((weights * solve(*p)).sum(), p)
            return tuple(each.numpy() for each in found)

        return run
    import jax
    import jax.numpy as jnp

    compute = jax_peer(problem, name, tolerance)
    p = [jnp.asarray(array) for array in problem.parameters]
    compiled = jax.jit(jax.grad(lambda *p: jnp.sum(c * compute(*p)), argnums=tuple(range(len(p)))))
    return lambda: tuple(np.asarray(each) for each in compiled(*p))


PACKAGES = {"TorchDEQ": "torchdeq", "TorchOpt": "torchopt"}


def installed(name: str) -> bool:
    library = name.split(",")[0]
    return importlib.util.find_spec(PACKAGES.get(library, library)) is not None
