"""The 23 standard systems of nonlinear equations, g(z, p) = 0, as data for tests.

1-14 are the systems of MINPACK and TOMS 566: J. J. Moré, B. S. Garbow, K. E. Hillstrom, "Testing Unconstrained Optimization
Software", ACM TOMS 7 (1981) 17-41, in the form of MINPACK's own test programs. With 15-23 they are the 23 of J. Burkardt's
collection test_nonlin, the set by which solvers of nonlinear equations are usually compared. Where other transcriptions differ
(Watson, Chebyquad), MINPACK's form is meant. Nodes of the Chandrasekhar equation are the midpoints: C. T. Kelley, "Iterative
Methods for Linear and Nonlinear Equations", SIAM 1995, section 5.6.

Each system has one parameter p, which is not part of the literature: at its default the system is the standard one, and the roots
depend on p smoothly wherever the Jacobian is regular.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, eq=False)
class System:
    """One system g(z, p) = 0 of n equations in float64.

    `g` takes z of shape (..., n) and p of shape () or (...), and gives (..., n). `roots` are known roots with a regular Jacobian,
    `singular_roots` those with a singular one; each has as many digits as are published, or all of them. A system without either
    has roots that are known only numerically, unless it is `rootless`.
    """

    name: str
    g: Callable[[Tensor, Tensor], Tensor]
    start: Tensor
    p: Tensor
    roots: tuple[Tensor, ...] = ()
    singular_roots: tuple[Tensor, ...] = ()
    rootless: bool = False

    @property
    def n(self) -> int:
        return self.start.shape[-1]

    @property
    def singular(self) -> bool:
        """Whether every known root has a singular Jacobian."""
        return bool(self.singular_roots) and not self.roots


def real(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def ones(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.float64)


def index(z: Tensor) -> Tensor:
    """1, 2, ..., n for unknowns z of shape (..., n)."""
    return torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device)


def before(z: Tensor) -> Tensor:
    """zₖ₋₁ in place k, with z₀ = 0."""
    return pad(z, (1, 0))[..., :-1]


def after(z: Tensor) -> Tensor:
    """zₖ₊₁ in place k, with zₙ₊₁ = 0."""
    return pad(z, (0, 1))[..., 1:]


def rosenbrock(z: Tensor, p: Tensor) -> Tensor:
    """g₁ = p - z₁, gₖ = 10(zₖ - zₖ₋₁²); the root is zₖ = p^(2ᵏ⁻¹)."""
    return torch.cat([p[..., None] - z[..., :1], 10 * (z[..., 1:] - z[..., :-1] ** 2)], dim=-1)


def powell_singular(z: Tensor, p: Tensor) -> Tensor:
    a, b, c, d = z.unbind(-1)
    return torch.stack([a + 10 * b - p, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2], dim=-1)


def powell_badly_scaled(z: Tensor, p: Tensor) -> Tensor:
    a, b = z.unbind(-1)
    return torch.stack([1e4 * a * b - 1, torch.exp(-a) + torch.exp(-b) - p], dim=-1)


def wood(z: Tensor, p: Tensor) -> Tensor:
    """The gradient of Wood's function, its first and third component halved; p is what the first unknown is compared with."""
    a, b, c, d = z.unbind(-1)
    ab, cd = b - a**2, d - c**2
    return torch.stack(
        [
            -200 * a * ab - (p - a),
            200 * ab + 20.2 * (b - 1) + 19.8 * (d - 1),
            -180 * c * cd - (1 - c),
            180 * cd + 20.2 * (d - 1) + 19.8 * (b - 1),
        ],
        dim=-1,
    )


def helical_valley(z: Tensor, p: Tensor) -> Tensor:
    """The angle is the one in (-¼, ¾] turns, so its cut is the negative b axis; p is the radius."""
    a, b, c = z.unbind(-1)
    turns = (torch.atan2(-a, b) + math.pi / 2) / (2 * math.pi)
    return torch.stack([10 * (c - 10 * turns), 10 * (torch.hypot(a, b) - p), c], dim=-1)


def watson(z: Tensor, p: Tensor) -> Tensor:
    """Half the gradient of the sum of squares of r, the least-squares residuals of `watson_residuals`: Jᵀr."""
    r, jacobian = watson_parts(z, p)
    return (jacobian * r[..., None]).sum(-2)


def watson_residuals(z: Tensor, p: Tensor) -> Tensor:
    """Σ(j - 1) tᵢʲ⁻² zⱼ - (Σ tᵢʲ⁻¹ zⱼ)² - p for tᵢ = i/29, then z₁ and z₂ - z₁² - 1: (..., n) -> (..., 31)."""
    return watson_parts(z, p)[0]


def watson_parts(z: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """The 31 residuals (..., 31) and their Jacobian (..., 31, n)."""
    t = torch.arange(1, 30, dtype=z.dtype, device=z.device)[:, None] / 29
    j = index(z)
    powers = t ** (j - 1)
    slopes = (j - 1) * t ** (j - 2)
    value = z @ powers.mT
    unit = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    first = unit[0].expand(z.shape)
    second = unit[1] - 2 * z[..., :1] * unit[0]
    r = torch.cat([z @ slopes.mT - value**2 - p[..., None], z[..., :1], z[..., 1:2] - z[..., :1] ** 2 - 1], dim=-1)
    jacobian = torch.cat([slopes - 2 * value[..., None] * powers, first[..., None, :], second[..., None, :]], dim=-2)
    return r, jacobian


def chebyquad(z: Tensor, p: Tensor) -> Tensor:
    """gᵢ = mean over j of Tᵢ(2zⱼ - 1), minus p times the integral of Tᵢ(2t - 1) over [0, 1]."""
    y = 2 * z - 1
    previous, current = torch.ones_like(y), y
    g = []
    for i in range(1, z.shape[-1] + 1):
        integral = -1 / (i**2 - 1) if i % 2 == 0 else 0.0
        g.append(current.mean(-1) - p * integral)
        previous, current = current, 2 * y * current - previous
    return torch.stack(g, dim=-1)


def brown_almost_linear(z: Tensor, p: Tensor) -> Tensor:
    n = z.shape[-1]
    return torch.cat([z[..., :-1] + z.sum(-1, keepdim=True) - (n + 1), (z.prod(-1) - p)[..., None]], dim=-1)


def discrete_boundary_value(z: Tensor, p: Tensor) -> Tensor:
    """u'' = ½(u + t + p)³ with u(0) = u(1) = 0, by second differences."""
    h = 1 / (z.shape[-1] + 1)
    return 2 * z - before(z) - after(z) + h**2 / 2 * (z + h * index(z) + p[..., None]) ** 3


def discrete_integral_equation(z: Tensor, p: Tensor) -> Tensor:
    """The same problem with Green's function: uₖ + h/2 Σ G(tₖ, tⱼ)(uⱼ + tⱼ + p)³."""
    h = 1 / (z.shape[-1] + 1)
    t = h * index(z)
    cubes = (z + t + p[..., None]) ** 3
    green = torch.minimum(t, t[:, None]) * (1 - torch.maximum(t, t[:, None]))
    return z + h / 2 * cubes @ green


def trigonometric(z: Tensor, p: Tensor) -> Tensor:
    total = z.shape[-1] + p - torch.cos(z).sum(-1)
    return total[..., None] + index(z) * (1 - torch.cos(z)) - torch.sin(z)


def variably_dimensioned(z: Tensor, p: Tensor) -> Tensor:
    s = (index(z) * (z - p[..., None])).sum(-1, keepdim=True)
    return z - 1 + index(z) * s * (1 + 2 * s**2)


def broyden_tridiagonal(z: Tensor, p: Tensor) -> Tensor:
    return (3 - 2 * z) * z - before(z) - 2 * after(z) + p[..., None]


def broyden_banded(z: Tensor, p: Tensor) -> Tensor:
    """Each equation is coupled to five unknowns before it and one after it."""
    k = index(z)
    offset = k - k[:, None]  # of unknown j from equation k
    band = ((offset >= -5) & (offset <= 1) & (offset != 0)).to(z.dtype)
    return z * (2 + 5 * z**2) + p[..., None] - (z * (1 + z)) @ band.mT


def hammarling(z: Tensor, p: Tensor) -> Tensor:
    """X² = A for a square root X of A = 10⁻⁴ I + p e₁e₂ᵀ, row by row."""
    n = math.isqrt(z.shape[-1])
    x = z.unflatten(-1, (n, n))
    corner = torch.zeros(n, n, dtype=z.dtype, device=z.device)
    corner[0, 1] = 1
    a = 1e-4 * torch.eye(n, dtype=z.dtype, device=z.device) + p[..., None, None] * corner
    return (x @ x - a).flatten(-2)


def dennis_schnabel(z: Tensor, p: Tensor) -> Tensor:
    a, b = z.unbind(-1)
    return torch.stack([a + b - p, a**2 + b**2 - 9], dim=-1)


def one_minus_gaussian_over(x: Tensor) -> Tensor:
    """(1 - exp(-x²))/x, continued through 0, where it is x."""
    zero = x == 0
    divisor = torch.where(zero, torch.ones_like(x), x)
    return torch.where(zero, x, -torch.expm1(-(divisor**2)) / divisor)


def sample_18(z: Tensor, p: Tensor) -> Tensor:
    """Every point of either axis is a root (at p = 0), and all of them are singular."""
    a, b = z.unbind(-1)
    return torch.stack([b**2 * one_minus_gaussian_over(a) - p, a * one_minus_gaussian_over(b)], dim=-1)


def sample_19(z: Tensor, p: Tensor) -> Tensor:
    a, b = z.unbind(-1)
    square = a**2 + b**2
    return torch.stack([a * square - p, b * square], dim=-1)


def scalar_double_root(z: Tensor, p: Tensor) -> Tensor:
    return z * (z - 5) ** 2 - p[..., None]


def freudenstein_roth(z: Tensor, p: Tensor) -> Tensor:
    a, b = z.unbind(-1)
    return torch.stack([a - b**3 + 5 * b**2 - 2 * b - p, a + b**3 + b**2 - 14 * b - 29], dim=-1)


def boggs(z: Tensor, p: Tensor) -> Tensor:
    a, b = z.unbind(-1)
    return torch.stack([a**2 - b + p, a - torch.cos(math.pi / 2 * b)], dim=-1)


def chandrasekhar(z: Tensor, p: Tensor) -> Tensor:
    """H(μ) = 1/(1 - p/2 ∫ μ H(ν)/(μ + ν) dν) by the midpoint rule; the albedo p = 0.9."""
    n = z.shape[-1]
    mu = (index(z) - 0.5) / n
    kernel = mu[:, None] / (mu[:, None] + mu)
    return z - 1 / (1 - p[..., None] / (2 * n) * (z @ kernel.mT))


def parabola(n: int) -> Tensor:
    """t(t - 1) in the inner points of [0, 1]: the start of the boundary value problem, and of its integral equation."""
    t = torch.arange(1, n + 1, dtype=torch.float64) / (n + 1)
    return t * (t - 1)


def equidistant(n: int) -> Tensor:
    return torch.arange(1, n + 1, dtype=torch.float64) / (n + 1)


def chebyshev_nodes(*halves: float, middle: bool) -> tuple[Tensor, ...]:
    """The abscissas of Chebyshev's quadrature in [0, 1], from the positive ones of [-1, 1] (Abramowitz and Stegun, table 25.5)."""
    positive = sorted(halves)
    y = [-x for x in reversed(positive)] + [0.0] * middle + positive
    return ((real(*y) + 1) / 2,)


def square_root(n: int) -> Tensor:
    """The square root of 10⁻⁴ I + e₁e₂ᵀ, flat."""
    x = 0.01 * torch.eye(n, dtype=torch.float64)
    x[0, 1] = 50
    return x.flatten()


WATSON_6 = real(-0.015725, 1.012435, -0.232992, 1.260430, -1.513729, 0.992996)
WATSON_9 = real(-0.000015, 0.999790, 0.014764, 0.146342, 1.000821, -2.617731, 4.104403, -3.143612, 1.052627)

SYSTEMS: tuple[System, ...] = (
    System("generalised Rosenbrock", rosenbrock, real(-1.2, *[1.0] * 9), scalar(1), roots=(ones(10),)),
    System("Powell singular", powell_singular, real(3, -1, 0, 1), scalar(0), singular_roots=(0 * ones(4),)),
    System(
        "Powell badly scaled",
        powell_badly_scaled,
        real(0, 1),
        scalar(1.0001),
        # Interchanging the unknowns changes nothing.
        roots=(real(1.0981593296998175e-5, 9.106146739866524), real(9.106146739866524, 1.0981593296998175e-5)),
    ),
    System("Wood", wood, real(-3, -1, -3, -1), scalar(1), roots=(ones(4),)),
    System("helical valley", helical_valley, real(-1, 0, 0), scalar(1), roots=(real(1, 0, 0),)),
    System("Watson 6", watson, 0 * ones(6), scalar(1), roots=(WATSON_6,)),
    System(
        "Chebyquad 7",
        chebyquad,
        equidistant(7),
        scalar(1),
        roots=chebyshev_nodes(0.3239118105, 0.5296567753, 0.8838617008, middle=True),
    ),
    System("Brown almost linear 10", brown_almost_linear, ones(10) / 2, scalar(1), roots=(ones(10),)),
    System("discrete boundary value", discrete_boundary_value, parabola(10), scalar(1)),
    System("discrete integral equation", discrete_integral_equation, parabola(10), scalar(1)),
    System("trigonometric", trigonometric, ones(10) / 10, scalar(0), roots=(0 * ones(10),)),
    System(
        "variably dimensioned",
        variably_dimensioned,
        1 - torch.arange(1, 11, dtype=torch.float64) / 10,
        scalar(1),
        roots=(ones(10),),
    ),
    System("Broyden tridiagonal", broyden_tridiagonal, -ones(10), scalar(1)),
    System("Broyden banded", broyden_banded, -ones(10), scalar(1)),
    System("Hammarling 2 by 2", hammarling, real(1, 0, 0, 1), scalar(1), roots=(square_root(2), -square_root(2))),
    System(
        "Hammarling 3 by 3",
        hammarling,
        real(1, 0, 0, 0, 1, 0, 0, 0, 1),
        scalar(1),
        roots=(square_root(3), -square_root(3)),
    ),
    System("Dennis and Schnabel", dennis_schnabel, real(1, 5), scalar(3), roots=(real(0, 3), real(3, 0))),
    System("sample 18", sample_18, real(2, 2), scalar(0), singular_roots=(real(0, 0), real(0, 1), real(1, 0))),
    System("sample 19", sample_19, real(3, 3), scalar(0), singular_roots=(real(0, 0),)),
    System("scalar z(z - 5)²", scalar_double_root, real(1), scalar(0), roots=(real(0),), singular_roots=(real(5),)),
    System("Freudenstein and Roth", freudenstein_roth, real(0.5, -2), scalar(13), roots=(real(5, 4),)),
    System("Boggs", boggs, real(1, 0), scalar(1), roots=(real(0, 1), real(-(0.5**0.5), 1.5), real(-1, 2))),
    System("Chandrasekhar H", chandrasekhar, ones(10), scalar(0.9)),
)

# What else MINPACK's programs run: the same functions at other dimensions. Chebyquad has no root at n = 8.
OTHER_SIZES: tuple[System, ...] = (
    System("Rosenbrock 2", rosenbrock, real(-1.2, 1), scalar(1), roots=(ones(2),)),
    System("Watson 9", watson, 0 * ones(9), scalar(1), roots=(WATSON_9,)),
    System("Chebyquad 2", chebyquad, equidistant(2), scalar(1), roots=chebyshev_nodes(3**-0.5, middle=False)),
    System(
        "Chebyquad 5",
        chebyquad,
        equidistant(5),
        scalar(1),
        roots=chebyshev_nodes(0.3745414096, 0.8324974870, middle=True),
    ),
    System(
        "Chebyquad 6",
        chebyquad,
        equidistant(6),
        scalar(1),
        roots=chebyshev_nodes(0.2666354015, 0.4225186538, 0.8662468181, middle=False),
    ),
    System("Chebyquad 8", chebyquad, equidistant(8), scalar(1), rootless=True),
    System(
        "Chebyquad 9",
        chebyquad,
        equidistant(9),
        scalar(1),
        roots=chebyshev_nodes(0.1679061842, 0.5287617831, 0.6010186554, 0.9115893077, middle=True),
    ),
    System("Brown almost linear 30", brown_almost_linear, ones(30) / 2, scalar(1), roots=(ones(30),)),
    System("Brown almost linear 40", brown_almost_linear, ones(40) / 2, scalar(1), roots=(ones(40),)),
    System("discrete integral equation 1", discrete_integral_equation, parabola(1), scalar(1)),
)
