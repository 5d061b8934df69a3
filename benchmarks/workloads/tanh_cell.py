"""The layer z = tanh(z Wᵀ + x Uᵀ + b) that several workloads share: its arrays and its exact solution and gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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

    W, U, b, x, c = _doubles(arrays)
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
    return _reference(arrays, torch.stack(values), torch.stack(arguments))


def reference_by_iteration(arrays: Arrays) -> Reference:
    """The same where ‖W‖₂ = q < 1, for large batches: z ← tanh(W z + U x + b) and u ← c + Wᵀ(s u) in float64, both with a
    contraction factor of at most q, until what q tells of the error, q / (1 − q) times the last change, is 1e-12.
    """
    import torch

    W, U, b, x, c = _doubles(arrays)
    q = float(torch.linalg.matrix_norm(W, 2))

    def iterate(f: Callable[[Any], Any], z: Any) -> Any:
        for _ in range(5000):
            previous, z = z, f(z)
            if q / (1 - q) * (z - previous).norm(dim=1).max() <= 1e-12 * z.norm(dim=1).min():
                return z
        raise RuntimeError("the reference did not converge")

    injection = x @ U.T + b
    z = iterate(lambda z: torch.tanh(z @ W.T + injection), torch.zeros_like(injection))
    s = 1 - z**2
    u = iterate(lambda u: c + (s * u) @ W, c)
    return _reference(arrays, z, s * u)


def _doubles(arrays: Arrays) -> list[Any]:
    import torch

    return [torch.from_numpy(arrays[name].astype(np.float64)) for name in ("W", "U", "b", "x", "c")]


def _reference(arrays: Arrays, z: Any, a: Any) -> Reference:
    """From the solution and the gradient a that arrives at the argument of tanh."""
    _, U, _, x, _ = _doubles(arrays)
    gradients = {"W": a.T @ z, "U": a.T @ x, "b": a.sum(0), "x": a @ U}
    return Reference(z.numpy(), {name: gradient.numpy() for name, gradient in gradients.items()})
