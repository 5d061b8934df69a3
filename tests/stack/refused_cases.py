"""What docs/concepts/compile.md says cannot be part of a graph, row by row, and the words by which it is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from scipy.optimize import fsolve
from torch import Tensor

import torchimplicit as ti
from torchimplicit import linear, solvers

from .graph_cases import D, M, fit, fixed_point, minimum, one_system, posed, root

EQUALITY = ti.Constraints(equal=lambda z: z.sum(-1, keepdim=True) - 1)
SPD = M @ M.mT
PATTERN = torch.ones(2, 2, dtype=D)


@dataclass(frozen=True)
class Refused:
    """``solve(x)``, of x (B, 2), gives a tensor.

    names : of what its row of the table names, what it stands for.
    why : what the error says.
    """

    names: str
    solve: Callable[[Tensor], Tensor]
    why: str

    def __str__(self) -> str:
        return self.names.replace("`", "")


def value(solve: Callable[..., Any], **how: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: solve(x, **how)[0]


def projected(x: Tensor) -> Tensor:
    return ti.minimize(lambda z: ((z - x) ** 2).sum(-1), torch.zeros_like(x), batch_ndim=1, constraints=EQUALITY).value


def complementary(x: Tensor) -> Tensor:
    return ti.complementarity(lambda z: z + z.roll(1, -1) / 3 - x + 0.5, torch.zeros_like(x), batch_ndim=1).value


def program(x: Tensor) -> Tensor:
    return ti.quadratic_program(torch.eye(2, dtype=D), -x, lower=0.4).value


def conic(x: Tensor) -> Tensor:
    A, b = -torch.eye(2, dtype=D), torch.tensor([-0.3, -0.4], dtype=D)
    return ti.cone_program(torch.eye(2, dtype=D), -x, A, b, ti.Cones(nonnegative=2)).value


def cone(x: Tensor) -> Tensor:
    matrix = torch.diag_embed(x - 0.5) + 0.1
    return ti.projections.positive_semidefinite(matrix).flatten(1)


def scipys(x: Tensor) -> Tensor:
    found = fsolve(lambda z: z**3 + z - x.numpy().ravel(), x.numpy().ravel())
    return torch.from_numpy(found).reshape(x.shape)


def black_box(x: Tensor) -> Tensor:
    z: Tensor = ti.implicit(lambda z, x: z**3 + z - x, batch_ndim=1)(scipys)(x + 0)
    return z


def sparse(x: Tensor) -> Tensor:
    return ti.linear_solve(SPD[:2, :2].to_sparse_coo(), x).value


def system(x: Tensor, **how: Any) -> Tensor:
    matrix, b = posed(x, definite=True)
    return ti.linear_solve(linear.Dense(matrix, positive_definite=True), b, **how).value


def shortest(x: Tensor) -> Tensor:
    return ti.linear_solve(M[:2], x, shortest=True).value


def beside_null_space(x: Tensor) -> Tensor:
    A = linear.Dense(torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=D), symmetric=True)
    b = torch.stack([x[:, 0], -x[:, 0]], -1)
    return ti.linear_solve(A, b, null_space=torch.ones(2, 1, dtype=D)).value


def best_of_many(x: Tensor) -> Tensor:
    starts = torch.stack([torch.full_like(x, -1.0), torch.full_like(x, 1.0)])
    return ti.multi_start(ti.minimize, lambda z: ((z**2 - 1) ** 2 - x * z).sum(-1), starts, batch_ndim=1).value


def followed(x: Tensor) -> Tensor:
    row = x[0]
    return ti.continuation(lambda z, s: z**3 + z - s * row, torch.zeros(2, dtype=D), 0.0, 1.0).value.unsqueeze(0)


@dataclass(frozen=True)
class Damped(solvers.Method):
    """One's own."""

    damping: float = 0.5
    max_steps: ClassVar[int] = 500
    patience: ClassVar[int] = 100

    def init(self, equations: Any, z: Tensor) -> tuple[Tensor, None]:
        return equations.residual(z), None

    def step(self, equations: Any, z: Tensor, r: Tensor, state: None) -> tuple[Tensor, Tensor, None]:
        z = z - self.damping * r
        return z, equations.residual(z), state


def frozen(x: Tensor) -> Tensor:
    return root(x, randomness="frozen")[0]


def inner_transform(x: Tensor) -> Tensor:
    return torch.func.jacrev(lambda x: one_system(x)[0].sum(-1))(x).flatten(1)


def mapped(x: Tensor) -> Tensor:
    return torch.vmap(lambda x: one_system(x)[0])(x)


ADJOINTS: dict[str, Any] = {
    "Unrolled": ti.Unrolled(),
    "OneStep": ti.OneStep(),
    "Phantom": ti.Phantom(3),
    "SHINE": ti.SHINE(),
}
SOLVERS = {"BiCGStab": linear.BiCGStab(), "LSMR": linear.LSMR(), "SVD": linear.SVD()}

REFUSED = [
    Refused("`constraints=`", projected, "constraints= are met by a method"),
    Refused("`complementarity`", complementary, "complementarity cannot be"),
    Refused("`quadratic_program`", program, "quadratic_program cannot be"),
    Refused("`cone_program`", conic, "cone_program cannot be"),
    Refused("`projections.positive_semidefinite`", cone, "cannot be"),
    Refused("`implicit` around any other", black_box, "black_box"),
    Refused("sparse matrices", sparse, "sparse"),
    Refused("`sparsity=`", value(root, sparsity=PATTERN), "sparse matrices are factorised"),
    Refused("`shortest=`", shortest, "shortest= and null_space="),
    Refused("`null_space=`", beside_null_space, "shortest= and null_space="),
    Refused("`multi_start`", best_of_many, "multi_start cannot be"),
    Refused("`continuation`", followed, "continuation cannot be"),
    Refused("`pseudo_transient`", value(root, solver="pseudo_transient"), "solver='pseudo_transient'"),
    Refused("`nonlinear_cg`", value(minimum, solver="nonlinear_cg"), "solver='nonlinear_cg'"),
    Refused("`every=`", value(root, solver=solvers.Newton(every=2)), "every= > 1"),
    *(
        Refused(f"other linear solvers {name}", partial(system, solver=solver), f"the solver {name}")
        for name, solver in SOLVERS.items()
    ),
    *(
        Refused(
            f"other linear solvers {name} of the backward",
            value(root, adjoint=ti.Implicit(solver)),
            "adjoint=Implicit: only",
        )
        for name, solver in SOLVERS.items()
    ),
    Refused("methods of your own", value(root, solver=Damped()), "the solver Damped"),
    Refused("`callback=`", value(root, callback=lambda *_: None), "callback= is called"),
    Refused("`trace=True`", value(root, trace=True), "trace=True keeps"),
    Refused('`randomness="frozen"`', frozen, "generators"),
    *(
        Refused(
            f"adjoints other than `Implicit` {name}",
            value(fixed_point, adjoint=adjoint, solver="broyden" if name == "SHINE" else None),
            f"adjoint={name}",
        )
        for name, adjoint in ADJOINTS.items()
    ),
    Refused("adjoints other than `Implicit` GaussNewton", value(fit, adjoint=ti.GaussNewton()), "adjoint=GaussNewton"),
    Refused("a `torch.func` transform around the solve jacrev", inner_transform, "torch.func transform"),
    Refused("a `torch.func` transform around the solve vmap", mapped, "torch.func transform"),
]
