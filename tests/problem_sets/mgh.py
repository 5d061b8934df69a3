"""The 35 least-squares problems of Moré, Garbow and Hillstrom, as data for tests: minimise Σ rᵢ(z)².

J. J. Moré, B. S. Garbow, K. E. Hillstrom, "Testing Unconstrained Optimization Software", ACM TOMS 7 (1981) 17-41. The numbers and
the order are those of the paper; so are the starts, the observations and the minimal values. Where the paper leaves m or n open, the
sizes are the ones it reports minimal values for. In the paper's Gulf problem, |yᵢ m i z₂| is a misprint for |yᵢ - z₂|.
Values that are only approached at infinity (Bard 17.4286, Kowalik and Osborne 1.02734e-3) are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .minpack import (
    brown_almost_linear,
    broyden_banded,
    broyden_tridiagonal,
    chebyquad,
    discrete_boundary_value,
    discrete_integral_equation,
    equidistant,
    freudenstein_roth,
    helical_valley,
    index,
    ones,
    parabola,
    powell_badly_scaled,
    powell_singular,
    real,
    scalar,
    trigonometric,
    watson_residuals,
)


@dataclass(frozen=True, eq=False)
class LeastSquares:
    """Minimise the sum of squares of `residuals`, (..., n) -> (..., m) in float64.

    `minima` are the published minimal values of the sum of squares (not of half of it), the global one first, to six digits.
    `minimisers` are points where the first of them is attained, where they have a closed form.
    """

    name: str
    residuals: Callable[[Tensor], Tensor]
    m: int
    start: Tensor
    minima: tuple[float, ...] = (0.0,)
    minimisers: tuple[Tensor, ...] = ()

    @property
    def n(self) -> int:
        return self.start.shape[-1]


def up_to(m: int) -> Tensor:
    return torch.arange(1, m + 1, dtype=torch.float64)


def unknowns(z: Tensor) -> tuple[Tensor, ...]:
    """The unknowns one by one, each (..., 1), to be broadcast against m observations."""
    return z[..., None].unbind(-2)


def square_system(g: Callable[[Tensor, Tensor], Tensor], p: float) -> Callable[[Tensor], Tensor]:
    """The residuals of a system of equations at its standard parameter."""
    return lambda z: g(z, scalar(p))


BARD = real(0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39)
GAUSSIAN = real(0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521, 0.3989)
MEYER = real(34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744, 8261, 7030, 6005, 5147, 4427, 3820, 3307, 2872)
KOWALIK = real(0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246)
KOWALIK_U = real(4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625)
# fmt: off
OSBORNE_1 = real(
    0.844, 0.908, 0.932, 0.936, 0.925, 0.908, 0.881, 0.850, 0.818, 0.784, 0.751,
    0.718, 0.685, 0.658, 0.628, 0.603, 0.580, 0.558, 0.538, 0.522, 0.506, 0.490,
    0.478, 0.467, 0.457, 0.448, 0.438, 0.431, 0.424, 0.420, 0.414, 0.411, 0.406,
)
OSBORNE_2 = real(
    1.366, 1.191, 1.112, 1.013, 0.991, 0.885, 0.831, 0.847, 0.786, 0.725, 0.746, 0.679, 0.608,
    0.655, 0.616, 0.606, 0.602, 0.626, 0.651, 0.724, 0.649, 0.649, 0.694, 0.644, 0.624, 0.661,
    0.612, 0.558, 0.533, 0.495, 0.500, 0.423, 0.395, 0.375, 0.372, 0.391, 0.396, 0.405, 0.428,
    0.429, 0.523, 0.562, 0.607, 0.653, 0.672, 0.708, 0.633, 0.668, 0.645, 0.632, 0.591, 0.559,
    0.597, 0.625, 0.739, 0.710, 0.729, 0.720, 0.636, 0.581, 0.428, 0.292, 0.162, 0.098, 0.054,
)
# fmt: on


def rosenbrock(z: Tensor) -> Tensor:
    """Pairs of unknowns (a, b) with residuals 10(b - a²) and 1 - a; n = 2 is Rosenbrock's problem itself."""
    a, b = z[..., 0::2], z[..., 1::2]
    return torch.stack([10 * (b - a**2), 1 - a], dim=-1).flatten(-2)


def brown_badly_scaled(z: Tensor) -> Tensor:
    a, b = z.unbind(-1)
    return torch.stack([a - 1e6, b - 2e-6, a * b - 2], dim=-1)


def beale(z: Tensor) -> Tensor:
    a, b = unknowns(z)
    return real(1.5, 2.25, 2.625) - a * (1 - b ** up_to(3))


def jennrich_sampson(z: Tensor) -> Tensor:
    a, b = unknowns(z)
    i = up_to(10)
    return 2 + 2 * i - (torch.exp(i * a) + torch.exp(i * b))


def bard(z: Tensor) -> Tensor:
    a, b, c = unknowns(z)
    u = up_to(15)
    v = 16 - u
    return BARD - (a + u / (v * b + torch.minimum(u, v) * c))


def gaussian(z: Tensor) -> Tensor:
    a, b, c = unknowns(z)
    t = (8 - up_to(15)) / 2
    return a * torch.exp(-b * (t - c) ** 2 / 2) - torch.cat([GAUSSIAN, GAUSSIAN[:-1].flip(0)])


def meyer(z: Tensor) -> Tensor:
    a, b, c = unknowns(z)
    return a * torch.exp(b / (45 + 5 * up_to(16) + c)) - MEYER


def gulf(z: Tensor) -> Tensor:
    a, b, c = unknowns(z)
    t = up_to(99) / 100
    y = 25 + (-50 * torch.log(t)) ** (2 / 3)
    return torch.exp(-((y - b).abs() ** c) / a) - t


def box(z: Tensor) -> Tensor:
    a, b, c = unknowns(z)
    t = up_to(10) / 10
    return torch.exp(-t * a) - torch.exp(-t * b) - c * (torch.exp(-t) - torch.exp(-10 * t))


def wood(z: Tensor) -> Tensor:
    a, b, c, d = z.unbind(-1)
    return torch.stack(
        [10 * (b - a**2), 1 - a, 90**0.5 * (d - c**2), 1 - c, 10**0.5 * (b + d - 2), 10**-0.5 * (b - d)], dim=-1
    )


def kowalik_osborne(z: Tensor) -> Tensor:
    a, b, c, d = unknowns(z)
    u = KOWALIK_U
    return KOWALIK - a * (u**2 + u * b) / (u**2 + u * c + d)


def brown_dennis(z: Tensor) -> Tensor:
    a, b, c, d = unknowns(z)
    t = up_to(20) / 5
    return (a + t * b - torch.exp(t)) ** 2 + (c + d * torch.sin(t) - torch.cos(t)) ** 2


def osborne_1(z: Tensor) -> Tensor:
    a, b, c, d, e = unknowns(z)
    t = 10 * (up_to(33) - 1)
    return OSBORNE_1 - (a + b * torch.exp(-t * d) + c * torch.exp(-t * e))


def biggs(z: Tensor) -> Tensor:
    a, b, c, d, e, f = unknowns(z)
    t = up_to(13) / 10
    y = torch.exp(-t) - 5 * torch.exp(-10 * t) + 3 * torch.exp(-4 * t)
    return c * torch.exp(-t * a) - d * torch.exp(-t * b) + f * torch.exp(-t * e) - y


def osborne_2(z: Tensor) -> Tensor:
    heights, rates, centres = z[..., :4], z[..., 4:8], z[..., 8:]
    t = (up_to(65) - 1) / 10
    arguments = torch.cat([t[:, None].expand(*z.shape[:-1], 65, 1), (t[:, None] - centres[..., None, :]) ** 2], dim=-1)
    return OSBORNE_2 - (heights[..., None, :] * torch.exp(-arguments * rates[..., None, :])).sum(-1)


def extended_powell_singular(z: Tensor) -> Tensor:
    return powell_singular(z.unflatten(-1, (-1, 4)), scalar(0)).flatten(-2)


def penalty_1(z: Tensor) -> Tensor:
    return torch.cat([1e-5**0.5 * (z - 1), (z**2).sum(-1, keepdim=True) - 0.25], dim=-1)


def penalty_2(z: Tensor) -> Tensor:
    i = index(z)
    growth, data = torch.exp(z / 10), torch.exp(i / 10)
    pairs = growth[..., 1:] + growth[..., :-1] - (data[1:] + data[:-1])
    singles = growth[..., 1:] - torch.exp(scalar(-0.1))
    total = (i.flip(0) * z**2).sum(-1, keepdim=True) - 1
    return torch.cat([z[..., :1] - 0.2, 1e-5**0.5 * pairs, 1e-5**0.5 * singles, total], dim=-1)


def variably_dimensioned(z: Tensor) -> Tensor:
    s = (index(z) * (z - 1)).sum(-1, keepdim=True)
    return torch.cat([z - 1, s, s**2], dim=-1)


def linear_full_rank(m: int) -> Callable[[Tensor], Tensor]:
    def residuals(z: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(z, (0, m - z.shape[-1]))
        return padded - 2 / m * z.sum(-1, keepdim=True) - 1

    return residuals


def linear_rank_1(m: int) -> Callable[[Tensor], Tensor]:
    return lambda z: up_to(m) * (index(z) * z).sum(-1, keepdim=True) - 1


def linear_rank_1_zeros(m: int) -> Callable[[Tensor], Tensor]:
    """Rank 1 with the first and last column and row zero."""

    def residuals(z: Tensor) -> Tensor:
        s = (index(z) * z)[..., 1:-1].sum(-1, keepdim=True)
        rows = up_to(m) - 1
        rows[-1] = 0
        return rows * s - 1

    return residuals


PROBLEMS: tuple[LeastSquares, ...] = (
    LeastSquares("1 Rosenbrock", rosenbrock, 2, real(-1.2, 1), minimisers=(ones(2),)),
    LeastSquares(
        "2 Freudenstein and Roth",
        square_system(freudenstein_roth, 13),
        2,
        real(0.5, -2),
        minima=(0.0, 48.9842),
        minimisers=(real(5, 4),),
    ),
    LeastSquares("3 Powell badly scaled", square_system(powell_badly_scaled, 1.0001), 2, real(0, 1)),
    LeastSquares("4 Brown badly scaled", brown_badly_scaled, 3, real(1, 1), minimisers=(real(1e6, 2e-6),)),
    LeastSquares("5 Beale", beale, 3, real(1, 1), minimisers=(real(3, 0.5),)),
    LeastSquares("6 Jennrich and Sampson", jennrich_sampson, 10, real(0.3, 0.4), minima=(124.362,)),
    LeastSquares("7 helical valley", square_system(helical_valley, 1), 3, real(-1, 0, 0), minimisers=(real(1, 0, 0),)),
    LeastSquares("8 Bard", bard, 15, ones(3), minima=(8.21487e-3,)),
    LeastSquares("9 Gaussian", gaussian, 15, real(0.4, 1, 0), minima=(1.12793e-8,)),
    LeastSquares("10 Meyer", meyer, 16, real(0.02, 4000, 250), minima=(87.9458,)),
    LeastSquares("11 Gulf", gulf, 99, real(5, 2.5, 0.15), minimisers=(real(50, 25, 1.5),)),
    # Zero also wherever the first two unknowns agree and the third is 0.
    LeastSquares("12 Box", box, 10, real(0, 10, 20), minimisers=(real(1, 10, 1), real(10, 1, -1), real(3, 3, 0))),
    LeastSquares(
        "13 Powell singular", square_system(powell_singular, 0), 4, real(3, -1, 0, 1), minimisers=(0 * ones(4),)
    ),
    LeastSquares("14 Wood", wood, 6, real(-3, -1, -3, -1), minimisers=(ones(4),)),
    LeastSquares("15 Kowalik and Osborne", kowalik_osborne, 11, real(0.25, 0.39, 0.415, 0.39), minima=(3.07505e-4,)),
    LeastSquares("16 Brown and Dennis", brown_dennis, 20, real(25, 5, -5, -1), minima=(85822.2,)),
    LeastSquares("17 Osborne 1", osborne_1, 33, real(0.5, 1.5, -1, 0.01, 0.02), minima=(5.46489e-5,)),
    LeastSquares(
        "18 Biggs EXP6",
        biggs,
        13,
        real(1, 2, 1, 1, 1, 1),
        minima=(0.0, 5.65565e-3),
        minimisers=(real(1, 10, 1, 5, 4, 3),),
    ),
    LeastSquares(
        "19 Osborne 2",
        osborne_2,
        65,
        real(1.3, 0.65, 0.65, 0.7, 0.6, 3, 5, 7, 2, 4.5, 5.5),
        minima=(4.01377e-2,),
    ),
    LeastSquares("20 Watson 6", square_system(watson_residuals, 1), 31, 0 * ones(6), minima=(2.28767e-3,)),
    LeastSquares("20 Watson 9", square_system(watson_residuals, 1), 31, 0 * ones(9), minima=(1.39976e-6,)),
    LeastSquares("20 Watson 12", square_system(watson_residuals, 1), 31, 0 * ones(12), minima=(4.72238e-10,)),
    LeastSquares("21 extended Rosenbrock", rosenbrock, 10, real(-1.2, 1).repeat(5), minimisers=(ones(10),)),
    LeastSquares(
        "22 extended Powell singular",
        extended_powell_singular,
        12,
        real(3, -1, 0, 1).repeat(3),
        minimisers=(0 * ones(12),),
    ),
    LeastSquares("23 penalty I 4", penalty_1, 5, up_to(4), minima=(2.24997e-5,)),
    LeastSquares("23 penalty I 10", penalty_1, 11, up_to(10), minima=(7.08765e-5,)),
    LeastSquares("24 penalty II 4", penalty_2, 8, ones(4) / 2, minima=(9.37629e-6,)),
    LeastSquares("24 penalty II 10", penalty_2, 20, ones(10) / 2, minima=(2.93660e-4,)),
    LeastSquares("25 variably dimensioned", variably_dimensioned, 12, 1 - up_to(10) / 10, minimisers=(ones(10),)),
    LeastSquares(
        "26 trigonometric",
        square_system(trigonometric, 0),
        10,
        ones(10) / 10,
        minima=(0.0, 2.79506e-5),
        minimisers=(0 * ones(10),),
    ),
    LeastSquares(
        "27 Brown almost linear",
        square_system(brown_almost_linear, 1),
        10,
        ones(10) / 2,
        minima=(0.0, 1.0),  # the second at (0, ..., 0, n + 1)
        minimisers=(ones(10),),
    ),
    LeastSquares("28 discrete boundary value", square_system(discrete_boundary_value, 1), 10, parabola(10)),
    LeastSquares("29 discrete integral equation", square_system(discrete_integral_equation, 1), 10, parabola(10)),
    LeastSquares("30 Broyden tridiagonal", square_system(broyden_tridiagonal, 1), 10, -ones(10)),
    LeastSquares("31 Broyden banded", square_system(broyden_banded, 1), 10, -ones(10)),
    # 32-34: the published values are the formulas m - n, m(m - 1)/(2(2m + 1)) and (m² + 3m - 6)/(2(2m - 3)). The Jacobians of the
    # last two have rank 1 everywhere, so that their minimisers are whole hyperplanes.
    LeastSquares("32 linear full rank", linear_full_rank(20), 20, ones(10), minima=(10.0,), minimisers=(-ones(10),)),
    LeastSquares("33 linear rank 1", linear_rank_1(20), 20, ones(10), minima=(380 / 82,)),
    LeastSquares("34 linear rank 1 with zeros", linear_rank_1_zeros(20), 20, ones(10), minima=(454 / 74,)),
    LeastSquares("35 Chebyquad 7", square_system(chebyquad, 1), 7, equidistant(7)),
    LeastSquares("35 Chebyquad 8", square_system(chebyquad, 1), 8, equidistant(8), minima=(3.51687e-3,)),
    LeastSquares("35 Chebyquad 10", square_system(chebyquad, 1), 10, equidistant(10), minima=(4.77271e-3, 6.50395e-3)),
)
