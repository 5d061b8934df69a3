"""The layer z = tanh(z Wᵀ + x Uᵀ + b) that several workloads share: its arrays and its exact solution and gradient."""

from __future__ import annotations

import numpy as np

from benchmarks.workload import Arrays, Reference

PARAMETERS = ("W", "U", "b", "x")


def arrays(
    rng: np.random.Generator, W: np.ndarray, *, batch: int, features: int, scale: float, dtype: type
) -> dict[str, np.ndarray]:
    """x is (batch, features), the injection x Uᵀ + b has a standard deviation of about `scale`, c is the cotangent."""
    units = len(W)
    made = {
        "W": W,
        "U": rng.standard_normal((units, features)) * scale / features**0.5,
        "b": rng.standard_normal(units) * scale * 0.1,
        "x": rng.standard_normal((batch, features)),
        "c": rng.standard_normal((batch, units)),
    }
    return {name: array.astype(dtype) for name, array in made.items()}


def reference(arrays: Arrays) -> Reference:
    """Newton's method and one transposed solve per sample, with dense Jacobians in float64.

    With s = 1 − z², the Jacobian of g(z) = z − tanh(W z + U x + b) is I − diag(s) W, and with its transpose solved
    for u, the gradient of c·z arrives at the argument of tanh as s u.
    """
    import torch

    W, U, b, x, c = (torch.from_numpy(arrays[name].astype(np.float64)) for name in ("W", "U", "b", "x", "c"))
    identity = torch.eye(len(W), dtype=W.dtype)
    values, arguments = [], []
    for injection, cotangent in zip(x @ U.T + b, c):
        z = torch.zeros_like(injection)
        for _ in range(50):
            t = torch.tanh(W @ z + injection)
            step = torch.linalg.solve(identity - (1 - t**2)[:, None] * W, z - t)
            z = z - step
            if step.norm() <= 1e-14 * z.norm():
                break
        else:
            raise RuntimeError("the reference did not converge")
        s = 1 - z**2
        values.append(z)
        arguments.append(s * torch.linalg.solve((identity - s[:, None] * W).T, cotangent))
    z, a = torch.stack(values), torch.stack(arguments)
    gradients = {"W": a.T @ z, "U": a.T @ x, "b": a.sum(0), "x": a @ U}
    return Reference(z.numpy(), {name: gradient.numpy() for name, gradient in gradients.items()})
