"""What is right: Newton's method and the implicit function theorem with dense Jacobians, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.work_precision.problems import Problem


def reference(problem: Problem, c: np.ndarray) -> tuple[np.ndarray, ...]:
    """The gradients of Σ c·z, by Newton's method with halved steps and one dense transposed solve for each system."""
    import torch

    parameters = [torch.from_numpy(p).requires_grad_() for p in problem.parameters]
    rows = list(problem.batched) or [False] * len(parameters)

    def condition(z: Any, *p: Any) -> Any:
        if problem.kind == "root":
            return problem.f(torch, z, *p)
        if problem.kind == "fixed_point":
            return problem.f(torch, z, *p) - z
        if problem.kind == "minimize":
            return torch.func.grad(lambda z: problem.f(torch, z, *p))(z)
        return torch.func.grad(lambda z: problem.f(torch, z, *p).square().sum() / 2)(z)

    one, axes = condition, (0, *(0 if row else None for row in rows))
    if problem.batch_ndim:
        every = torch.vmap(one, axes)
        jacobian = torch.vmap(torch.func.jacrev(one), axes)
    else:
        every, jacobian = one, torch.func.jacrev(one)
    z, fixed = torch.from_numpy(problem.z0), [p.detach() for p in parameters]

    def square(J: Any) -> Any:
        return (
            J.reshape(*J.shape[: problem.batch_ndim], *([n] * 2))
            if (n := _unknowns(problem)) > 1
            else J[..., None, None]
        )

    def size(z: Any) -> Any:
        return every(z, *fixed).reshape(*z.shape[: problem.batch_ndim], -1).norm(dim=-1)

    def merit(z: Any) -> Any:
        """What every step makes smaller: the objective, or how far the condition is from being met."""
        if problem.kind == "minimize":
            return problem.f(torch, z, *fixed)
        if problem.kind == "least_squares":
            return problem.f(torch, z, *fixed).square().sum(-1)
        return size(z)

    for _ in range(200):
        r = every(z, *fixed)
        J = square(jacobian(z, *fixed))
        if problem.kind in ("minimize", "least_squares"):  # downhill, where the Hessian is not positive
            values, vectors = torch.linalg.eigh(J)
            J = vectors @ torch.diag_embed(values.abs().clamp_min(1e-8)) @ vectors.mT
        d = torch.linalg.solve(J, r.reshape(*J.shape[:-1], 1)).reshape(z.shape)
        length = torch.ones(z.shape[: problem.batch_ndim], dtype=z.dtype)
        for _ in range(30):
            worse = ~(merit(z - _spread(length, z) * d) <= merit(z) * (1 + 1e-12) + 1e-14)
            length = torch.where(worse, length / 2, length)
            if not worse.any():
                break
        z = z - _spread(length, z) * d
        if d.abs().max() <= 1e-14 * z.abs().max():
            break
    if not size(z).max() <= 1e-10:
        raise RuntimeError(f"{problem.title}: the reference did not converge")
    J, v = square(jacobian(z, *fixed)), torch.from_numpy(c)
    u = torch.linalg.solve(J.mT, v.reshape(*J.shape[:-1], 1)).reshape(z.shape)
    gradients = torch.autograd.grad(every(z, *parameters), parameters, -u)
    return tuple(gradient.numpy() for gradient in gradients)


def _unknowns(problem: Problem) -> int:
    return int(np.prod(problem.z0.shape[problem.batch_ndim :]))


def _spread(length: Any, z: Any) -> Any:
    return length.reshape(*length.shape, *[1] * (z.ndim - length.ndim))
