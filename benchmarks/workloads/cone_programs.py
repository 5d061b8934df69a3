"""Batches of programs within a ball, a second-order cone, with known solutions, and how these depend on p and h."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.workload import Arrays, Reference, Workload

BATCH, N, M, HELD = 64, 20, 20, 5


def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The ball holds z with a multiplier of 0.1 or more, and so do some of the inequalities; the others have a slack of 0.1 or more."""
    L, G = rng.standard_normal((N, N)), rng.standard_normal((M, N))
    Q = L @ L.T / N + 0.1 * np.eye(N)
    z = rng.standard_normal((BATCH, N))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    of_ball, size = 0.1 + np.abs(rng.standard_normal((BATCH, 1))), 0.1 + np.abs(rng.standard_normal((BATCH, M)))
    held = np.arange(M) < HELD
    p = -(z @ Q + of_ball * z + np.where(held, size, 0) @ G)
    h = z @ G.T + np.where(held, 0, size)
    return {"Q": Q, "G": G, "p": p, "h": h, "z": z, "of_ball": of_ball, "c": rng.standard_normal((BATCH, N))}


def reference(arrays: Arrays) -> Reference:
    """z as it was chosen, and the linear system of the optimality conditions of ‖z‖² ≤ 1 and the inequalities that hold it."""
    z, G = arrays["z"], arrays["G"][:HELD]
    of_p, of_h = np.zeros((BATCH, N)), np.zeros((BATCH, M))
    for i in range(BATCH):
        C = np.concatenate([z[i : i + 1], G])
        H = arrays["Q"] + arrays["of_ball"][i] * np.eye(N)
        system = np.block([[H, C.T], [C, np.zeros((HELD + 1, HELD + 1))]])
        u = np.linalg.solve(system, np.concatenate([arrays["c"][i], np.zeros(HELD + 1)]))
        of_p[i], of_h[i, :HELD] = -u[:N], u[N + 1 :]
    return Reference(z, {"p": of_p, "h": of_h})


workload = Workload(
    name="cone_programs",
    title=f"{BATCH} programs of {N} unknowns within a ball",
    description=f"""
Minimise ½ zᵀQz + pᵀz over ‖z‖ ≤ 1 and Gz ≤ h for {BATCH} random programs of {N} unknowns and {M} inequalities, of which {HELD} hold the
solution, as does the ball, float64; gradients in p and h. Everybody works to the tolerance that is its default. The layers are made
of one `cvxpy.Problem`.
""",
    parameters=("p", "h"),
    arrays=arrays,
    reference=reference,
)


def problem(arrays: dict[str, Any]) -> tuple[Any, list[Any], list[Any]]:
    import cvxpy as cp

    z, p, h = cp.Variable(N), cp.Parameter(N), cp.Parameter(M)
    L = np.linalg.cholesky(arrays["Q"].numpy()).T
    objective = cp.Minimize(cp.sum_squares(L @ z) / 2 + p @ z)
    return cp.Problem(objective, [cp.norm(z) <= 1, arrays["G"].numpy() @ z <= h]), [p, h], [z]


@workload.torch("torchimplicit", packages=("cvxpy", "clarabel"))
def torchimplicit(p: dict[str, Any]) -> Callable[[], Any]:
    import torchimplicit as ti

    layer = ti.interop.cvxpy(*problem(p))
    return lambda: layer(p["p"], p["h"])[0]


@workload.torch("torchimplicit, cone_program", packages=("clarabel",))
def cone_program(p: dict[str, Any]) -> Callable[[], Any]:
    import torch

    import torchimplicit as ti

    first = torch.zeros(1, N).double()
    A = torch.cat([p["G"], first, -torch.eye(N).double()])
    ball = torch.cat([torch.ones(1), torch.zeros(N)]).double().expand(BATCH, -1)
    cones = ti.Cones(nonnegative=M, second_order=[N + 1])
    return lambda: ti.cone_program(p["Q"], p["p"], A, torch.cat([p["h"], ball], -1), cones).value


@workload.torch("cvxpylayers", packages=("cvxpylayers", "diffcp"))
def cvxpylayers(p: dict[str, Any]) -> Callable[[], Any]:
    from cvxpylayers.torch import CvxpyLayer

    made, parameters, variables = problem(p)
    layer = CvxpyLayer(made, parameters=parameters, variables=variables)
    return lambda: layer(p["p"], p["h"])[0]


@workload.torch("cvxpylayers, SCS to 1e-10", packages=("cvxpylayers", "diffcp", "scs"))
def cvxpylayers_accurately(p: dict[str, Any]) -> Callable[[], Any]:
    from cvxpylayers.torch import CvxpyLayer

    made, parameters, variables = problem(p)
    layer = CvxpyLayer(made, parameters=parameters, variables=variables)
    return lambda: layer(p["p"], p["h"], solver_args={"eps": 1e-10, "solve_method": "SCS"})[0]
