"""What docs/concepts/compile.md says can be part of a graph, row by row: every kind of problem by every method that is named there, in
batches of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import torchimplicit as ti
from torchimplicit import linear

D = torch.float64
A = torch.tensor([[1.2, 0.3], [-0.2, 0.9]], dtype=D)
T = torch.linspace(0, 1, 20, dtype=D)
WIDE = torch.linspace(0.5, 1.5, 300, dtype=D)
M = torch.tensor([[4.0, 1.0, 0.5, 0.0], [-0.5, 3.0, 0.2, 0.1], [0.3, 0.0, 5.0, -1.0], [0.0, 0.7, 0.4, 4.0]], dtype=D)
TO_FOUR = torch.tensor([[1.0, 0.5, -0.3, 0.2], [0.1, -0.7, 0.4, 1.0]], dtype=D)

Solve = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """``solve(x, **how)``, of x (B, 2), gives z and its info, or None where there is none.

    row : the words that its row of the table begins with.
    names : of what the row names, what it stands for.
    compiles : whether it takes compile=True.
    tolerance : how near to one another two solutions of it come.
    same_steps : whether plain code takes the same steps; beyond n = 256 it has factors of a sparse Jacobian to help it.
    """

    row: str
    names: tuple[str, ...]
    solve: Solve
    compiles: bool = True
    tolerance: float = 1e-8
    same_steps: bool = True

    @property
    def any_size(self) -> bool:
        """Whether one exported program serves inputs of any size: not where that is the number of unknowns of one system."""
        return "one system" not in self.names

    def __str__(self) -> str:
        return " ".join(self.names).replace("`", "")


def root(x: Tensor, **how: Any) -> Any:
    return ti.root(lambda z: z @ A.mT + 0.1 * z**3 - x, torch.zeros_like(x), batch_ndim=1, rtol=1e-10, **how)


def one_system(x: Tensor, **how: Any) -> Any:
    return ti.root(lambda z: z @ A.mT + 0.1 * z**3 - x, torch.zeros_like(x), rtol=1e-10, **how)


def number(x: Tensor, **how: Any) -> Any:
    return ti.root(lambda z: z**3 + z - x, torch.ones_like(x), batch_ndim=2, rtol=1e-10, **how)


def fixed_point(x: Tensor, **how: Any) -> Any:
    f = lambda z: torch.tanh(0.4 * z @ A.mT + x)  # noqa: E731
    return ti.fixed_point(f, torch.zeros_like(x), batch_ndim=1, rtol=1e-10, **how)


def fixed_number(x: Tensor, **how: Any) -> Any:
    return ti.fixed_point(lambda z: torch.cos(z) / 2 + x, torch.zeros_like(x), batch_ndim=2, rtol=1e-10, **how)


def minimum(x: Tensor, **how: Any) -> Any:
    phi = lambda z: ((z - x) ** 4 + z**2 + (z @ A) * z / 10).sum(-1)  # noqa: E731
    return ti.minimize(phi, torch.zeros_like(x), batch_ndim=1, rtol=1e-10, **how)


def fit(x: Tensor, **how: Any) -> Any:
    def r(z: Tensor) -> Tensor:
        model = z[:, :1] * torch.exp(-z[:, 1:] * T) - (1 + x[:, :1]) * torch.exp(-(1 + x[:, 1:]) * T)
        return model - 0.01 * torch.sin(9 * T)

    return ti.least_squares(r, torch.ones_like(x), batch_ndim=1, rtol=1e-10, **how)


def bounded(x: Tensor, **how: Any) -> Any:
    phi = lambda z: ((z - x) ** 2 + z**4 / 10).sum(-1) + z.prod(-1) / 3  # noqa: E731
    return ti.minimize(phi, torch.zeros_like(x), bounds=(-2.0, 1.5 * x - 0.4), batch_ndim=1, rtol=1e-10, **how)


def bounded_fit(x: Tensor, **how: Any) -> Any:
    def r(z: Tensor) -> Tensor:
        return z[:, :1] * torch.exp(-z[:, 1:] * T) - (1 + x[:, :1]) * torch.exp(-(1 + x[:, 1:]) * T)

    return ti.least_squares(r, torch.ones_like(x), bounds=(None, 1.4), batch_ndim=1, rtol=1e-10, **how)


def spread(x: Tensor, n: int) -> Tensor:
    """Of x (B, 2), n numbers in each row."""
    return x[:, :1] + x[:, 1:] * WIDE[:n]


def wide_root(n: int) -> Solve:
    def solve(x: Tensor, **how: Any) -> Any:
        u = spread(x, n)
        g = lambda z: z + 0.1 * z**3 + 0.2 * z.roll(1, -1).sin() - u  # noqa: E731
        return ti.root(g, torch.zeros_like(u), batch_ndim=1, rtol=1e-10, **how)

    return solve


def wide_minimum(x: Tensor, **how: Any) -> Any:
    u = spread(x, 300)
    phi = lambda z: ((z - u) ** 2 / 2 + z**4 / 10 + 0.3 * torch.cos(z + z.roll(1, -1))).sum(-1)  # noqa: E731
    return ti.minimize(phi, torch.zeros_like(u), batch_ndim=1, rtol=1e-10, **how)


def wide_fit(x: Tensor, **how: Any) -> Any:
    u = spread(x, 300)
    r = lambda z: torch.cat([z - u, 0.5 * z * z.roll(1, -1)], -1)  # noqa: E731
    return ti.least_squares(r, torch.zeros_like(u), batch_ndim=1, rtol=1e-10, **how)


def wide_bounded(x: Tensor, **how: Any) -> Any:
    u = spread(x, 300)
    phi = lambda z: ((z - u) ** 2 / 2 + z**4 / 10 + 0.3 * torch.cos(z + z.roll(1, -1))).sum(-1)  # noqa: E731
    return ti.minimize(phi, torch.zeros_like(u), bounds=(0.3, 0.8), batch_ndim=1, rtol=1e-10, **how)


def posed(x: Tensor, definite: bool) -> tuple[Tensor, Tensor]:
    """Matrices and right-hand sides."""
    matrix = M + x[:, :1, None] * torch.diag(TO_FOUR[0])
    return (matrix @ matrix.mT if definite else matrix), x @ TO_FOUR


def system(form: str, solver: Any, definite: bool = False) -> Solve:
    def solve(x: Tensor, **how: Any) -> Any:
        matrix, b = posed(x, definite)
        forms = {
            "entries": matrix,
            "Dense": linear.Dense(matrix, positive_definite=definite),
            "products": lambda z: (matrix @ z.unsqueeze(-1)).squeeze(-1),
        }
        return ti.linear_solve(forms[form], b, solver=solver, rtol=1e-11, **how)

    return solve


def cubes(x: Tensor) -> Tensor:
    z = torch.zeros_like(x)
    for _ in range(40):
        z = z - (z**3 + z - x) / (3 * z**2 + 1)
    return z


def black_box(x: Tensor) -> Any:
    return ti.implicit(lambda z, x: z**3 + z - x, batch_ndim=1)(cubes)(x), None


def black_box_of_trees(x: Tensor) -> Any:
    def solve(x: Tensor) -> dict[str, Tensor]:
        return {"a": cubes(x), "b": 2 * x.sum(-1, keepdim=True)}

    def condition(z: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        return {"a": z["a"] ** 3 + z["a"] - x, "b": z["b"] - 2 * x.sum(-1, keepdim=True)}

    z = ti.implicit(condition, batch_ndim=1)(solve)(x)
    return torch.cat([z["a"], z["b"]], -1), None


def plan(x: Tensor) -> Any:
    cost = (x.unsqueeze(-1) - torch.tensor([0.0, 1.0, 2.0], dtype=D)).abs()
    rows, columns = torch.full((2,), 0.5, dtype=D), torch.full((3,), 1 / 3, dtype=D)
    return ti.projections.transport(cost, rows, columns).flatten(1), None


def soft_permutation(x: Tensor) -> Any:
    scores = torch.diag_embed(3 * x) + torch.tensor([[0.1, 0.4], [0.3, -0.2]], dtype=D)
    return ti.projections.birkhoff(scores).flatten(1), None


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear, self.norm = nn.Linear(2, 2), nn.LayerNorm(2)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(0.3 * self.linear(z) + x + self.norm(x))


class Energy(Cell):
    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return ((z - x) ** 2 + torch.nn.functional.softplus(self.linear(z))).sum(-1)


class Gap(Cell):
    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return z - super().forward(z, x)


def layer(kind: type, module: nn.Module, **options: Any) -> Solve:
    module = module.to(D)

    def solve(x: Tensor, **how: Any) -> Any:
        made = kind(module, **{"rtol": 1e-10, **options, **how})
        z = made(x)
        return z, made.last_info

    return solve


SINGLE = Cell()  # float32


def cast(x: Tensor, **how: Any) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, info = ti.fixed_point(lambda z: SINGLE(z, x.float()), torch.zeros_like(x.float()), batch_ndim=1, **how)
    return z.to(D), info


def with_aux(x: Tensor, **how: Any) -> Any:
    f = lambda z: (torch.tanh(0.4 * z @ A.mT + x), {"twice": 2 * z})  # noqa: E731
    z, info = ti.fixed_point(f, torch.zeros_like(x), batch_ndim=1, has_aux=True, rtol=1e-10, **how)
    return torch.cat([z, info.aux["twice"]], -1), info


def trees(x: Tensor, **how: Any) -> Any:
    def g(z: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"a": z["a"] ** 3 + z["a"] - x * z["b"], "b": z["b"] - z["a"].sum(-1, keepdim=True) / 5 - 1}

    z0 = {"a": torch.zeros_like(x), "b": torch.zeros_like(x[:, :1])}
    z, info = ti.root(g, z0, batch_ndim=1, rtol=1e-10, **how)
    return torch.cat([z["a"], z["b"]], -1), info


def complex_root(x: Tensor, **how: Any) -> Any:
    z, info = ti.root(
        lambda z: z**2 + 0.1 * z.conj() - x * (1 + 1j), torch.ones_like(x) + 0j, batch_ndim=1, rtol=1e-10, **how
    )
    return torch.view_as_real(z).flatten(1), info


def complex_fixed_point(x: Tensor, **how: Any) -> Any:
    z, info = ti.fixed_point(
        lambda z: torch.cos(z) / 3 + x * (1 - 1j), torch.zeros_like(x) + 0j, batch_ndim=1, rtol=1e-10, **how
    )
    return torch.view_as_real(z).flatten(1), info


def half_fails(policy: str) -> Solve:
    """Of the systems those whose x is above its mean contract, and the others do not."""

    def solve(x: Tensor, **how: Any) -> Any:
        rate = torch.where(x[:, :1] > 0.5, 0.5, 1.5)
        how = {"on_failure": policy, "max_steps": 60, "solver": "picard", "rtol": 1e-10, **how}
        z, info = ti.fixed_point(lambda z: rate * z + x, torch.ones_like(x), batch_ndim=1, **how)
        return torch.where(x[:, :1] > 0.5, z, 0), info

    return solve


ROOTS = ("newton", "chord", "broyden", "newton_krylov", "dogleg", "anderson", "picard")
NUMBERS = ("chandrupatla", "itp", "bisection")
LINEAR: dict[str, Any] = {
    "LU": linear.LU(),
    "QR": linear.QR(),
    "Cholesky": linear.Cholesky(),
    "CG": linear.CG(),
    "MINRES": linear.MINRES(),
    "GMRES": linear.GMRES(),
    "Large": linear.Large(),
    "the default": None,
}


def by(solve: Solve, **fixed: Any) -> Solve:
    """The same with options of its own."""
    return lambda x, **how: solve(x, **fixed, **how)


def all_cases() -> Iterator[Case]:
    """Row by row."""
    for name in ROOTS:
        yield Case("`root`", ("`root`", name), by(root, solver=name))
    yield Case("`root`", ("`root`", "newton", "one system"), by(one_system, solver="newton"))
    for name in NUMBERS:
        yield Case("`root`", ("`root`", "one unknown", name), by(number, solver=name))
    for name in ROOTS:
        yield Case("`fixed_point`", ("`fixed_point`", "the same", name), by(fixed_point, solver=name))
    for name in NUMBERS:
        yield Case("`fixed_point`", ("`fixed_point`", "the same", name), by(fixed_number, solver=name))
    yield Case("`fixed_point`", ("`fixed_point`", "the default"), fixed_point)
    for name in ("trust_newton", "newton_cg", "bfgs", "lbfgs"):
        yield Case("`minimize`", ("`minimize`", name), by(minimum, solver=name))
    yield Case("`minimize`", ("`minimize`", "default"), minimum)
    yield Case("`minimize`", ("`minimize`", "default", "wide"), wide_minimum, same_steps=False)
    for name in ("levenberg_marquardt", "gauss_newton", "dogleg", "trust_newton"):
        yield Case("`least_squares`", ("`least_squares`", name), by(fit, solver=name))
    for loss in ("huber", "soft_l1", "cauchy"):
        yield Case("`least_squares`", ("`least_squares`", "`loss=`", loss), by(fit, loss=loss, f_scale=0.005))
    several = "the default of `root` and `least_squares`"
    yield Case(several, ("`root`", "default"), root)
    yield Case(several, ("`root`", "default", "one unknown"), number)
    yield Case(several, ("`root`", "default", "100"), wide_root(100))
    yield Case(several, ("`root`", "default", "300"), wide_root(300), same_steps=False)
    yield Case(several, ("`least_squares`", "default"), fit)
    yield Case(several, ("`least_squares`", "default", "300"), wide_fit, same_steps=False)
    yield Case("`bounds=`", ("`bounds=`", "projected_newton"), by(bounded, solver="projected_newton"))
    yield Case("`bounds=`", ("`bounds=`", "the default"), bounded)
    yield Case("`bounds=`", ("`bounds=`", "the default", "fit"), bounded_fit)
    yield Case("`bounds=`", ("`bounds=`", "projected_newton", "fit"), by(bounded_fit, solver="projected_newton"))
    yield Case("`bounds=`", ("`bounds=`", "the default", "n = 256"), wide_bounded, same_steps=False)
    for form in ("entries", "`Dense`", "products"):
        for name, solver in LINEAR.items():
            solve = system(form.strip("`"), solver, definite=name in ("Cholesky", "CG", "MINRES"))
            yield Case("`linear_solve`", ("`linear_solve`", form, name), solve, compiles=False)
    yield Case(
        "`linear_solve`",
        ("`linear_solve`", "`Dense`", "the default", "definite"),
        system("Dense", None, definite=True),
        compiles=False,
    )
    yield Case("`implicit`", ("`implicit`",), black_box, compiles=False, tolerance=1e-7)
    yield Case("`implicit`", ("`implicit`", "trees"), black_box_of_trees, compiles=False, tolerance=1e-7)
    name = "`projections.transport`"
    yield Case(name, (name,), plan, compiles=False, tolerance=1e-6)
    yield Case(name, ("`projections.birkhoff`",), soft_permutation, compiles=False, tolerance=1e-6)
    yield Case("`ti.nn`", ("`ti.nn`", "FixedPoint"), layer(ti.nn.FixedPoint, Cell()))
    yield Case("`ti.nn`", ("`ti.nn`", "Root"), layer(ti.nn.Root, Gap()))
    yield Case("`ti.nn`", ("`ti.nn`", "ArgMin"), layer(ti.nn.ArgMin, Energy()))
    yield Case("`ti.nn`", ("autocast",), cast, tolerance=2e-2)
    yield Case("`ti.nn`", ("`has_aux`",), with_aux)
    yield Case("`ti.nn`", ("pytrees",), trees)
    yield Case("`ti.nn`", ("complex numbers", "root"), complex_root)
    yield Case("`ti.nn`", ("complex numbers", "fixed point"), complex_fixed_point)
    for policy in ("warn", "nan", "ignore"):
        yield Case("`ti.nn`", ("`on_failure`", policy), half_fails(policy))


CASES = list(all_cases())
