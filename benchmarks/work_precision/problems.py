"""The eight problems, each written once for torch and for jax.numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Function = Callable[..., Any]  # of (xp, z, *parameters), where xp is torch or jax.numpy


@dataclass(frozen=True)
class Problem:
    """One condition in terms of `xp`. For one system, or for a batch of them whose parameters `batched` names."""

    title: str
    kind: str  # of the entry point: "fixed_point", "root", "minimize", "least_squares"
    f: Function
    z0: np.ndarray
    parameters: tuple[np.ndarray, ...]
    batched: tuple[bool, ...] = ()  # which parameters have a row for each system; empty: z is one system
    ours: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    batch_ndim: int = 0


def problems(rng: np.random.Generator) -> Iterator[Problem]:
    def cell(xp: Any, z: Any, W: Any, b: Any) -> Any:
        return xp.tanh(z @ W.T + b)

    for q in (0.5, 0.97):
        W = rng.standard_normal((64, 64))
        W *= q / np.linalg.norm(W, 2)
        b = 0.3 * rng.standard_normal((32, 64))
        yield Problem(
            f"Deep equilibrium cell, 32 × 64, ‖W‖ = {q}",
            "fixed_point",
            cell,
            np.zeros((32, 64)),
            (W, b),
            (False, True),
            ("picard", "anderson"),
            ("TorchDEQ, Anderson", "jaxopt, plain steps", "optimistix, plain steps"),
            1,
        )

    def coupled(xp: Any, z: Any, A: Any, b: Any) -> Any:
        return z + 0.5 * xp.tanh(z @ A.T) ** 3 - b

    for n, batch in ((8, 1000), (128, 8)):
        A = rng.standard_normal((n, n)) / n**0.5
        yield Problem(
            f"{batch} roots of {n} unknowns",
            "root",
            coupled,
            np.zeros((batch, n)),
            (A, rng.standard_normal((batch, n))),
            (False, True),
            ("newton", "broyden"),
            # xitorch takes a batch for one large system, which of many small ones is not what it is for.
            ("optimistix, Newton", "optimistix, chord", *(("xitorch, Broyden",) if batch < 10 else ())),
            1,
        )

    def kepler(xp: Any, z: Any, M: Any, e: Any) -> Any:
        return z - e * xp.sin(z) - M

    M = rng.uniform(0.1, 3.0, 20_000)
    yield Problem(
        "Kepler's equation, 20,000 times",
        "root",
        kepler,
        M.copy(),
        (M, rng.uniform(0.0, 0.9, 20_000)),
        (True, True),
        ("newton", "chandrupatla"),
        ("optimistix, Newton", "optimistix, bisection"),
        1,
    )

    from sklearn.datasets import load_breast_cancer

    X, y = load_breast_cancer(return_X_y=True)
    X = (2.0 * y[:, None] - 1) * (X - X.mean(0)) / X.std(0)

    def logistic(xp: Any, z: Any, penalties: Any) -> Any:
        margins = xp.asarray(X) @ z
        return xp.logaddexp(-margins, 0 * margins).sum() + (xp.exp(penalties) * z**2).sum() / 2

    yield Problem(
        "Logistic regression, gradient in 30 penalties",
        "minimize",
        logistic,
        np.zeros(30),
        (rng.uniform(-1, 2, 30),),
        ours=("trust_newton", "lbfgs"),
        peers=("jaxopt, LBFGS", "optimistix, BFGS", "TorchOpt, Adam"),
    )

    def valley(xp: Any, z: Any, a: Any) -> Any:
        return (10 * (z[1:] - z[:-1] ** 2) ** 2 + (a[:-1] - z[:-1]) ** 2).sum()

    yield Problem(
        "Rosenbrock's valley, 20 unknowns",
        "minimize",
        valley,
        np.zeros(20),
        (rng.uniform(0.8, 1.0, 20),),
        ours=("trust_newton", "bfgs"),
        peers=("jaxopt, LBFGS", "optimistix, BFGS"),
    )

    t = np.linspace(0, 4, 30)

    def decay(xp: Any, z: Any, y: Any) -> Any:
        return z[..., :1] * xp.exp(-z[..., 1:2] * xp.asarray(t)) + z[..., 2:] - y

    a, b, c = rng.uniform(1, 3, (500, 1)), rng.uniform(0.5, 2, (500, 1)), rng.uniform(-0.5, 0.5, (500, 1))
    yield Problem(
        "500 fits of a exp(−b t) + c, gradient in the data",
        "least_squares",
        decay,
        np.tile([1.0, 1.0, 0.0], (500, 1)),
        (a * np.exp(-b * t) + c + 0.05 * rng.standard_normal((500, 30)),),
        (True,),
        ("levenberg_marquardt", "gauss_newton"),
        ("jaxopt, Levenberg–Marquardt", "optimistix, Levenberg–Marquardt"),
        1,
    )
