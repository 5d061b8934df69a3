"""80 problems of Hock and Schittkowski with equality and inequality constraints, as data for tests: minimise φ(z).

W. Hock, K. Schittkowski, "Test Examples for Nonlinear Programming Codes", Lecture Notes in Economics and Mathematical Systems 187,
Springer (1981). Numbers, formulas, starts and minimal values are the book's. Constraints are g(z) = 0 and g(z) ≥ 0, as there; those
with only bounds, and those that the book itself states in a way that its values contradict, are left out. In 112 the published minimum,
-47.707579, is a misprint of what 111, the same problem in logarithms, has; 106 is given to the digits that its printed z has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .minpack import real

INF = math.inf
Formula = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True, eq=False)
class Program:
    """Minimise `objective` subject to `equal` = 0, `at_least` ≥ 0 and bounds, all as functions of z (..., n) in float64.

    `minima` are the published minimal values, and those of other local minima that methods find from the start.
    """

    name: str
    start: Tensor
    formula: Callable[..., Tensor]
    minima: tuple[float, ...]
    equalities: Formula | None = None
    inequalities: Formula | None = None
    lower: Tensor | None = None
    upper: Tensor | None = None

    @property
    def n(self) -> int:
        return len(self.start)

    def objective(self, z: Tensor) -> Tensor:
        return self.formula(*z.unbind(-1))

    @property
    def equal(self) -> Callable[[Tensor], Tensor] | None:
        return stacked(self.equalities)

    @property
    def at_least(self) -> Callable[[Tensor], Tensor] | None:
        return stacked(self.inequalities)


def stacked(formula: Formula | None) -> Callable[[Tensor], Tensor] | None:
    if formula is None:
        return None
    return lambda z: torch.stack([value + 0 * z[..., 0] for value in formula(*z.unbind(-1))], -1)


def limit(value: float | list[float] | None, n: int) -> Tensor | None:
    if value is None:
        return None
    return real(*value) if isinstance(value, list) else torch.full((n,), float(value), dtype=torch.float64)


PROGRAMS: list[Program] = []


def add(
    name: int,
    start: list[float],
    formula: Callable[..., Tensor],
    minima: float | tuple[float, ...],
    eq: Formula | None = None,
    ge: Formula | None = None,
    low: float | list[float] | None = None,
    high: float | list[float] | None = None,
) -> None:
    published = minima if isinstance(minima, tuple) else (minima,)
    n = len(start)
    PROGRAMS.append(Program(f"HS {name}", real(*start), formula, published, eq, ge, limit(low, n), limit(high, n)))


sqrt, exp, log, sin, cos = torch.sqrt, torch.exp, torch.log, torch.sin, torch.cos
PI = math.pi


def rosenbrock(a: Tensor, b: Tensor) -> Tensor:
    return 100 * (b - a**2) ** 2 + (1 - a) ** 2


add(6, [-1.2, 1], lambda a, b: (1 - a) ** 2, 0, eq=lambda a, b: (10 * (b - a**2),))
add(7, [2, 2], lambda a, b: log(1 + a**2) - b, -(3**0.5), eq=lambda a, b: ((1 + a**2) ** 2 + b**2 - 4,))
add(8, [2, 1], lambda a, b: 0 * a - 1, -1, eq=lambda a, b: (a**2 + b**2 - 25, a * b - 9))
add(9, [0, 0], lambda a, b: sin(PI * a / 12) * cos(PI * b / 16), -0.5, eq=lambda a, b: (4 * a - 3 * b,))
add(10, [-10, 10], lambda a, b: a - b, -1, ge=lambda a, b: (-3 * a**2 + 2 * a * b - b**2 + 1,))
add(11, [4.9, 0.1], lambda a, b: (a - 5) ** 2 + b**2 - 25, -8.498464223, ge=lambda a, b: (b - a**2,))
add(12, [0, 0], lambda a, b: a**2 / 2 + b**2 - a * b - 7 * a - 7 * b, -30, ge=lambda a, b: (25 - 4 * a**2 - b**2,))
add(13, [-2, -2], lambda a, b: (a - 2) ** 2 + b**2, 1, ge=lambda a, b: ((1 - a) ** 3 - b,), low=0)
add(
    14,
    [2, 2],
    lambda a, b: (a - 2) ** 2 + (b - 1) ** 2,
    9 - 2.875 * 7**0.5,
    eq=lambda a, b: (a - 2 * b + 1,),
    ge=lambda a, b: (1 - a**2 / 4 - b**2,),
)
add(15, [-2, 1], rosenbrock, (306.5, 360.379767), ge=lambda a, b: (a * b - 1, a + b**2), high=[0.5, INF])
add(16, [-2, 1], rosenbrock, (0.25, 23.14466), ge=lambda a, b: (a + b**2, a**2 + b), low=[-0.5, -INF], high=[0.5, 1])
add(17, [-2, 1], rosenbrock, 1, ge=lambda a, b: (b**2 - a, a**2 - b), low=[-0.5, -INF], high=[0.5, 1])
add(18, [2, 2], lambda a, b: a**2 / 100 + b**2, 5, ge=lambda a, b: (a * b - 25, a**2 + b**2 - 25), low=[2, 0], high=50)
add(
    19,
    [20.1, 5.84],
    lambda a, b: (a - 10) ** 3 + (b - 20) ** 3,
    -6961.81381,
    ge=lambda a, b: ((a - 5) ** 2 + (b - 5) ** 2 - 100, 82.81 - (b - 5) ** 2 - (a - 6) ** 2),
    low=[13, 0],
    high=100,
)
add(
    20,
    [-2, 1],
    rosenbrock,
    (81.5 - 25 * 3**0.5, 40.1987),
    ge=lambda a, b: (a + b**2, a**2 + b, a**2 + b**2 - 1),
    low=[-0.5, -INF],
    high=[0.5, INF],
)
add(
    21,
    [-1, -1],
    lambda a, b: 0.01 * a**2 + b**2 - 100,
    -99.96,
    ge=lambda a, b: (10 * a - b - 10,),
    low=[2, -50],
    high=50,
)
add(22, [2, 2], lambda a, b: (a - 2) ** 2 + (b - 1) ** 2, 1, ge=lambda a, b: (2 - a - b, b - a**2))
add(
    23,
    [3, 1],
    lambda a, b: a**2 + b**2,
    2,
    ge=lambda a, b: (a + b - 1, a**2 + b**2 - 1, 9 * a**2 + b**2 - 9, a**2 - b, b**2 - a),
    low=-50,
    high=50,
)
add(
    24,
    [1, 0.5],
    lambda a, b: ((a - 3) ** 2 - 9) * b**3 / (27 * 3**0.5),
    -1,
    ge=lambda a, b: (a / 3**0.5 - b, a + 3**0.5 * b, 6 - a - 3**0.5 * b),
    low=0,
)
add(26, [-2.6, 2, 2], lambda a, b, c: (a - b) ** 2 + (b - c) ** 4, 0, eq=lambda a, b, c: ((1 + b**2) * a + c**4 - 3,))
add(27, [2, 2, 2], lambda a, b, c: 0.01 * (a - 1) ** 2 + (b - a**2) ** 2, 0.04, eq=lambda a, b, c: (a + c**2 + 1,))
add(28, [-4, 1, 1], lambda a, b, c: (a + b) ** 2 + (b + c) ** 2, 0, eq=lambda a, b, c: (a + 2 * b + 3 * c - 1,))
add(29, [1, 1, 1], lambda a, b, c: -a * b * c, -16 * 2**0.5, ge=lambda a, b, c: (48 - a**2 - 2 * b**2 - 4 * c**2,))
add(
    30,
    [1, 1, 1],
    lambda a, b, c: a**2 + b**2 + c**2,
    1,
    ge=lambda a, b, c: (a**2 + b**2 - 1,),
    low=[1, -10, -10],
    high=10,
)
add(
    31,
    [1, 1, 1],
    lambda a, b, c: 9 * a**2 + b**2 + 9 * c**2,
    6,
    ge=lambda a, b, c: (a * b - 1,),
    low=[-10, 1, -10],
    high=[10, 10, 1],
)
add(
    32,
    [0.1, 0.7, 0.2],
    lambda a, b, c: (a + 3 * b + c) ** 2 + 4 * (a - b) ** 2,
    1,
    eq=lambda a, b, c: (1 - a - b - c,),
    ge=lambda a, b, c: (6 * b + 4 * c - a**3 - 3,),
    low=0,
)
add(
    33,
    [0, 0, 3],
    lambda a, b, c: (a - 1) * (a - 2) * (a - 3) + c,
    (2**0.5 - 6, -4),
    ge=lambda a, b, c: (c**2 - b**2 - a**2, a**2 + b**2 + c**2 - 4),
    low=0,
    high=[INF, INF, 5],
)
add(
    34,
    [0, 1.05, 2.9],
    lambda a, b, c: -a,
    -math.log(math.log(10)),
    ge=lambda a, b, c: (b - exp(a), c - exp(b)),
    low=0,
    high=[100, 100, 10],
)
add(
    35,
    [0.5, 0.5, 0.5],
    lambda a, b, c: 9 - 8 * a - 6 * b - 4 * c + 2 * a**2 + 2 * b**2 + c**2 + 2 * a * b + 2 * a * c,
    1 / 9,
    ge=lambda a, b, c: (3 - a - b - 2 * c,),
    low=0,
)
add(
    36,
    [10, 10, 10],
    lambda a, b, c: -a * b * c,
    -3300,
    ge=lambda a, b, c: (72 - a - 2 * b - 2 * c,),
    low=0,
    high=[20, 11, 42],
)
add(
    37,
    [10, 10, 10],
    lambda a, b, c: -a * b * c,
    -3456,
    ge=lambda a, b, c: (72 - a - 2 * b - 2 * c, a + 2 * b + 2 * c),
    low=0,
    high=42,
)
add(39, [2, 2, 2, 2], lambda a, b, c, d: -a, -1, eq=lambda a, b, c, d: (b - a**3 - c**2, a**2 - b - d**2))
add(
    40,
    [0.8, 0.8, 0.8, 0.8],
    lambda a, b, c, d: -a * b * c * d,
    -0.25,
    eq=lambda a, b, c, d: (a**3 + b**2 - 1, a**2 * d - c, d**2 - b),
)
add(
    41,
    [2, 2, 2, 2],
    lambda a, b, c, d: 2 - a * b * c,
    (52 / 27, 2),
    eq=lambda a, b, c, d: (a + 2 * b + 2 * c - d,),
    low=0,
    high=[1, 1, 1, 2],
)
add(
    42,
    [1, 1, 1, 1],
    lambda a, b, c, d: (a - 1) ** 2 + (b - 2) ** 2 + (c - 3) ** 2 + (d - 4) ** 2,
    28 - 10 * 2**0.5,
    eq=lambda a, b, c, d: (a - 2, c**2 + d**2 - 2),
)
add(
    43,
    [0, 0, 0, 0],
    lambda a, b, c, d: a**2 + b**2 + 2 * c**2 + d**2 - 5 * a - 5 * b - 21 * c + 7 * d,
    -44,
    ge=lambda a, b, c, d: (
        8 - a**2 - b**2 - c**2 - d**2 - a + b - c + d,
        10 - a**2 - 2 * b**2 - c**2 - 2 * d**2 + a + d,
        5 - 2 * a**2 - b**2 - c**2 - 2 * a + b + d,
    ),
)
add(
    44,
    [0, 0, 0, 0],
    lambda a, b, c, d: a - b - c - a * c + a * d + b * c - b * d,
    (-15, -13),
    ge=lambda a, b, c, d: (
        8 - a - 2 * b,
        12 - 4 * a - b,
        12 - 3 * a - 4 * b,
        8 - 2 * c - d,
        8 - c - 2 * d,
        5 - c - d,
    ),
    low=0,
)
add(
    46,
    [2**0.5 / 2, 1.75, 0.5, 2, 2],
    lambda a, b, c, d, e: (a - b) ** 2 + (c - 1) ** 2 + (d - 1) ** 4 + (e - 1) ** 6,
    0,
    eq=lambda a, b, c, d, e: (a**2 * d + sin(d - e) - 1, b + c**4 * d**2 - 2),
)
add(
    47,
    [2, 2**0.5, -1, 2 - 2**0.5, 0.5],
    lambda a, b, c, d, e: (a - b) ** 2 + (b - c) ** 3 + (c - d) ** 4 + (d - e) ** 4,
    (0, -0.026714),
    eq=lambda a, b, c, d, e: (a + b**2 + c**3 - 3, b - c**2 + d - 1, a * e - 1),
)
add(
    48,
    [3, 5, -3, 2, -2],
    lambda a, b, c, d, e: (a - 1) ** 2 + (b - c) ** 2 + (d - e) ** 2,
    0,
    eq=lambda a, b, c, d, e: (a + b + c + d + e - 5, c - 2 * (d + e) + 3),
)
add(
    49,
    [10, 7, 2, -3, 0.8],
    lambda a, b, c, d, e: (a - b) ** 2 + (c - 1) ** 2 + (d - 1) ** 4 + (e - 1) ** 6,
    0,
    eq=lambda a, b, c, d, e: (a + b + c + 4 * d - 7, c + 5 * e - 6),
)
add(
    50,
    [35, -31, 11, 5, -5],
    lambda a, b, c, d, e: (a - b) ** 2 + (b - c) ** 2 + (c - d) ** 4 + (d - e) ** 2,
    0,
    eq=lambda a, b, c, d, e: (a + 2 * b + 3 * c - 6, b + 2 * c + 3 * d - 6, c + 2 * d + 3 * e - 6),
)
add(
    51,
    [2.5, 0.5, 2, -1, 0.5],
    lambda a, b, c, d, e: (a - b) ** 2 + (b + c - 2) ** 2 + (d - 1) ** 2 + (e - 1) ** 2,
    0,
    eq=lambda a, b, c, d, e: (a + 3 * b - 4, c + d - 2 * e, b - e),
)
add(
    52,
    [2, 2, 2, 2, 2],
    lambda a, b, c, d, e: (4 * a - b) ** 2 + (b + c - 2) ** 2 + (d - 1) ** 2 + (e - 1) ** 2,
    1859 / 349,
    eq=lambda a, b, c, d, e: (a + 3 * b, c + d - 2 * e, b - e),
)
add(
    53,
    [2, 2, 2, 2, 2],
    lambda a, b, c, d, e: (a - b) ** 2 + (b + c - 2) ** 2 + (d - 1) ** 2 + (e - 1) ** 2,
    176 / 43,
    eq=lambda a, b, c, d, e: (a + 3 * b, c + d - 2 * e, b - e),
    low=-10,
    high=10,
)
add(
    55,
    [1, 2, 0, 0, 0, 2],
    lambda a, b, c, d, e, f: a + 2 * b + 4 * e + exp(a * d),
    (19 / 3, 20 / 3),
    eq=lambda a, b, c, d, e, f: (a + 2 * b + 5 * e - 6, a + b + c - 3, d + e + f - 2, a + d - 1, b + e - 2, c + f - 2),
    low=0,
    high=[1, INF, INF, 1, INF, INF],
)
add(
    56,
    [1, 1, 1, *[math.asin((1 / 4.2) ** 0.5)] * 3, math.asin((5 / 7.2) ** 0.5)],
    lambda a, b, c, d, e, f, g: -a * b * c,
    -3.456,
    eq=lambda a, b, c, d, e, f, g: (
        a - 4.2 * sin(d) ** 2,
        b - 4.2 * sin(e) ** 2,
        c - 4.2 * sin(f) ** 2,
        a + 2 * b + 2 * c - 7.2 * sin(g) ** 2,
    ),
)
