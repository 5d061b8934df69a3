"""Batches of quadratic programs with known solutions, and how these depend on Q and p."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.workload import Arrays, Reference, Workload


def arrays(rng: np.random.Generator, batch: int, n: int, m: int, k: int) -> dict[str, np.ndarray]:
    """A third of n inequalities hold z with multipliers of 0.1 or more, the others have a slack of 0.1 or more."""
    L, G, A = (rng.standard_normal((batch, rows, n)) for rows in (n, m, k))
    Q = L @ L.transpose(0, 2, 1) / n + 0.1 * np.eye(n)
    z, equality = rng.standard_normal((batch, n)), rng.standard_normal((batch, k))
    size, held = 0.1 + np.abs(rng.standard_normal((batch, m))), np.arange(m) < n // 3
    inequality = np.where(held, size, 0)
    p = -(Q @ z[..., None] + G.transpose(0, 2, 1) @ inequality[..., None] + A.transpose(0, 2, 1) @ equality[..., None])
    h = (G @ z[..., None])[..., 0] + np.where(held, 0, size)
    b = (A @ z[..., None])[..., 0]
    return {"Q": Q, "p": p[..., 0], "G": G, "h": h, "A": A, "b": b, "z": z, "c": rng.standard_normal((batch, n))}


def reference(arrays: Arrays) -> Reference:
    """z as it was chosen, and the linear system of the optimality conditions with the constraints that hold it."""
    Q, z, n, held = arrays["Q"], arrays["z"], arrays["z"].shape[1], arrays["z"].shape[1] // 3
    C = np.concatenate([arrays["G"][:, :held], arrays["A"]], axis=1)
    rows = C.shape[1]
    zero = np.zeros((len(z), rows, rows))
    system = np.concatenate([np.concatenate([Q, C.transpose(0, 2, 1)], 2), np.concatenate([C, zero], 2)], 1)
    v = np.concatenate([arrays["c"], np.zeros((len(z), rows))], axis=1)
    u = np.linalg.solve(system, v[..., None])[:, :n, 0]
    of_Q = -(u[:, :, None] * z[:, None, :] + z[:, :, None] * u[:, None, :]) / 2
    return Reference(z, {"Q": of_Q, "p": -u})


def made(name: str, batch: int, n: int, m: int, k: int) -> Workload:
    workload = Workload(
        name=name,
        title=f"{batch:,} quadratic programs of {n} unknowns",
        description=f"""
Minimise ½ zᵀQz + pᵀz over Gz ≤ h, Az = b for {batch:,} random programs of {n} unknowns, {m} inequalities, of which {n // 3} hold the
solution, and {k} equalities, float64; gradients in Q and p. Everybody works to the tolerance that is its default.
""",
        parameters=("Q", "p"),
        arrays=lambda rng: arrays(rng, batch, n, m, k),
        reference=reference,
    )
    workload.torch("torchimplicit")(torchimplicit)
    workload.torch("qpth", packages=("qpth",))(qpth)
    workload.torch(
        "PIQP, one by one",
        packages=("piqp",),
        note="the linear system of the optimality conditions, written out with NumPy, as its backward",
    )(one_by_one)
    return workload


def torchimplicit(p: dict[str, Any]) -> Callable[[], Any]:
    import torchimplicit as ti

    return lambda: ti.quadratic_program(p["Q"], p["p"], p["G"], p["h"], p["A"], p["b"]).value


def qpth(p: dict[str, Any]) -> Callable[[], Any]:
    from qpth.qp import QPFunction

    solve = QPFunction(verbose=-1, check_Q_spd=False)
    return lambda: solve(p["Q"], p["p"], p["G"], p["h"], p["A"], p["b"])


def one_by_one(p: dict[str, Any]) -> Callable[[], Any]:
    import piqp
    import torch

    G, h, A, b = (p[name].numpy() for name in ("G", "h", "A", "b"))

    class Programs(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, Q: Any, q: Any) -> Any:
            found = []
            for Qi, qi, Ai, bi, Gi, hi in zip(Q.detach().numpy(), q.detach().numpy(), A, b, G, h):
                solver = piqp.DenseSolver()
                solver.setup(P=Qi, c=qi, A=Ai, b=bi, G=Gi, h_u=hi)
                solver.solve()
                found.append((solver.result.x.copy(), solver.result.z_u > solver.result.s_u))
            z = torch.from_numpy(np.stack([x for x, _ in found]))
            ctx.held = [held for _, held in found]
            ctx.save_for_backward(Q, z)
            return z

        @staticmethod
        def backward(ctx: Any, v: Any) -> Any:
            Q, z = ctx.saved_tensors
            us = []
            for Qi, vi, Ai, Gi, held in zip(Q.numpy(), v.numpy(), A, G, ctx.held):
                C = np.concatenate([Gi[held], Ai])
                system = np.block([[Qi, C.T], [C, np.zeros((len(C), len(C)))]])
                us.append(np.linalg.solve(system, np.concatenate([vi, np.zeros(len(C))]))[: len(vi)])
            u = torch.from_numpy(np.stack(us))
            return -(u[:, :, None] * z[:, None, :] + z[:, :, None] * u[:, None, :]) / 2, -u

    return lambda: Programs.apply(p["Q"], p["p"])


fifty = made("quadratic_programs", 128, 50, 50, 10)
ten = made("small_quadratic_programs", 10_000, 10, 10, 3)
