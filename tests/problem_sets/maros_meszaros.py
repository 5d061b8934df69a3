"""Problems of the set of Maros and Mészáros that can be written by their formulas, with the optimal values of their table.

Source: Maros and Mészáros, A repository of convex quadratic programming problems, Optim. Methods Softw. 11 (1999); formulas of Hock and
Schittkowski (1981) and of the CUTEst collection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

D = torch.float64
INF = float("inf")


class Problem(NamedTuple):
    """``data`` of ``ti.quadratic_program`` by name; the objective is ½ zᵀQz + pᵀz + constant."""

    data: dict[str, Any]
    constant: float
    optimum: float


def tensor(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=D)


def of_objective(f: Callable[[Tensor], Tensor], n: int) -> tuple[Tensor, Tensor, float]:
    """Q, p and the constant of a quadratic function."""
    zero = torch.zeros(n, dtype=D)
    return torch.func.hessian(f)(zero), torch.func.grad(f)(zero), float(f(zero))


def hs21() -> Problem:
    Q, p, c = of_objective(lambda x: 0.01 * x[0] ** 2 + x[1] ** 2 - 100, 2)
    data = {"G": tensor([-10, 1]), "h": tensor(-10), "lower": tensor(2, -50), "upper": tensor(50, 50)}
    return Problem({"Q": Q, "p": p, **data}, c, -99.96)


def hs35() -> Problem:
    def f(x: Tensor) -> Tensor:
        a, b, c = x
        return 9 - 8 * a - 6 * b - 4 * c + 2 * a**2 + 2 * b**2 + c**2 + 2 * a * b + 2 * a * c

    Q, p, c = of_objective(f, 3)
    return Problem({"Q": Q, "p": p, "G": tensor([1, 1, 2]), "h": tensor(3), "lower": 0.0}, c, 1 / 9)


def hs35mod() -> Problem:
    problem = hs35()
    bounds = {"lower": tensor(0, 0.5, 0), "upper": tensor(INF, 0.5, INF)}
    return problem._replace(data={**problem.data, **bounds}, optimum=0.25)


def hs51() -> Problem:
    Q, p, c = of_objective(lambda x: (x[0] - x[1]) ** 2 + (x[1] + x[2] - 2) ** 2 + (x[3] - 1) ** 2 + (x[4] - 1) ** 2, 5)
    A = tensor([1, 3, 0, 0, 0], [0, 0, 1, 1, -2], [0, 1, 0, 0, -1])
    return Problem({"Q": Q, "p": p, "A": A, "b": tensor(4, 0, 0)}, c, 0.0)


def hs52() -> Problem:
    Q, p, c = of_objective(
        lambda x: (4 * x[0] - x[1]) ** 2 + (x[1] + x[2] - 2) ** 2 + (x[3] - 1) ** 2 + (x[4] - 1) ** 2, 5
    )
    return Problem({"Q": Q, "p": p, "A": hs51().data["A"], "b": tensor(0, 0, 0)}, c, 1859 / 349)


def hs53() -> Problem:
    problem = hs51()
    data = {**problem.data, "b": tensor(0, 0, 0), "lower": -10.0, "upper": 10.0}
    return problem._replace(data=data, optimum=176 / 43)


def hs76() -> Problem:
    def f(x: Tensor) -> Tensor:
        a, b, c, d = x
        return a**2 + b**2 / 2 + c**2 + d**2 / 2 - a * c + c * d - a - 3 * b + c - d

    Q, p, c = of_objective(f, 4)
    G = tensor([1, 2, 1, 1], [3, 1, 2, -1], [0, -1, -4, 0])
    return Problem({"Q": Q, "p": p, "G": G, "h": tensor(5, 4, -1.5), "lower": 0.0}, c, -4.681818182)


def hs118() -> Problem:
    squares, slopes = tensor(1e-4, 1e-4, 1.5e-4).repeat(5), tensor(2.3, 1.7, 2.2).repeat(5)
    eye, rows, h = torch.eye(15, dtype=D), [], []
    for j in range(3, 15):
        step = eye[j] - eye[j - 3]  # between −7 and 6 or 7
        rows += [step, -step]
        h += [7.0 if j % 3 == 1 else 6.0, 7.0]
    for k, least in enumerate((60.0, 50.0, 70.0, 85.0, 100.0)):
        rows.append(-eye[3 * k : 3 * k + 3].sum(0))
        h.append(-least)
    lower, upper = tensor(8, 43, 3, *[0.0] * 12), tensor(21, 57, 16, *[90, 120, 60] * 4)
    data = {"G": torch.stack(rows), "h": tensor(*h), "lower": lower, "upper": upper}
    return Problem({"Q": torch.diag(2 * squares), "p": slopes, **data}, 0.0, 664.82045)


def tame() -> Problem:
    data = {"A": tensor([1, 1]), "b": tensor(1), "lower": 0.0}
    return Problem({"Q": tensor([2, -2], [-2, 2]), "p": tensor(0, 0), **data}, 0.0, 0.0)


def genhs28() -> Problem:
    Q, p, c = of_objective(lambda x: (x[:-1] + x[1:]).square().sum(), 10)
    eye = torch.eye(10, dtype=D)
    return Problem(
        {"Q": Q, "p": p, "A": eye[:-2] + 2 * eye[1:-1] + 3 * eye[2:], "b": torch.ones(8, dtype=D)}, c, 0.92717369
    )


def cvxqp(m: int, optimum: float, n: int = 100) -> Problem:
    def row(*terms: tuple[float, int]) -> Tensor:
        v = torch.zeros(n, dtype=D)
        for weight, i in terms:
            v[i] += weight
        return v

    squares = [row((1, i - 1), (1, (2 * i - 1) % n), (1, (3 * i - 1) % n)) for i in range(1, n + 1)]
    Q = sum(i * torch.outer(v, v) for i, v in enumerate(squares, 1))
    A = torch.stack([row((1, i - 1), (2, (4 * i - 1) % n), (3, (5 * i - 1) % n)) for i in range(1, m + 1)])
    data = {"A": A, "b": torch.full((m,), 6.0, dtype=D), "lower": 0.1, "upper": 10.0}
    return Problem({"Q": Q, "p": torch.zeros(n, dtype=D), **data}, 0.0, optimum)


PROBLEMS: dict[str, Problem] = {
    "HS21": hs21(),
    "HS35": hs35(),
    "HS35MOD": hs35mod(),
    "HS51": hs51(),
    "HS52": hs52(),
    "HS53": hs53(),
    "HS76": hs76(),
    "HS118": hs118(),
    "TAME": tame(),
    "GENHS28": genhs28(),
    "CVXQP1_S": cvxqp(50, 1.15907181e4),
    "CVXQP2_S": cvxqp(25, 8.12094048e3),
    "CVXQP3_S": cvxqp(75, 1.19434322e4),
}
