"""The problems of Hock and Schittkowski from number 57 on."""

from __future__ import annotations

import torch
from torch import Tensor

from .hock_schittkowski import add, exp, log, sin, sqrt
from .minpack import real

A57 = real(8, 8, *[10] * 4, *[12] * 4, *[14] * 3, *[16] * 3, *[18] * 2, *[20] * 3, *[22] * 3, *[24] * 3, *[26] * 3)
A57 = torch.cat([A57, real(28, 28, 30, 30, 30, 32, 32, 34, 36, 36, 38, 38, 40, 42)])
# fmt: off
B57 = real(
    0.49, 0.49, 0.48, 0.47, 0.48, 0.47, 0.46, 0.46, 0.45, 0.43, 0.45, 0.43, 0.43, 0.44, 0.43, 0.43, 0.46, 0.45, 0.42, 0.42, 0.43, 0.41,
    0.41, 0.40, 0.42, 0.40, 0.40, 0.41, 0.40, 0.41, 0.41, 0.40, 0.40, 0.40, 0.38, 0.41, 0.40, 0.40, 0.41, 0.38, 0.40, 0.40, 0.39, 0.39,
)
# fmt: on


def hs57(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.unsqueeze(-1), b.unsqueeze(-1)
    return (B57 - a - (0.49 - a) * exp(-b * (A57 - 8))).square().sum(-1)


def hs62(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return (
        -8204.37 * log((a + b + c + 0.03) / (0.09 * a + b + c + 0.03))
        - 9008.72 * log((b + c + 0.03) / (0.07 * b + c + 0.03))
        - 9330.46 * log((c + 0.03) / (0.13 * c + 0.03))
    )


add(57, [0.42, 5], hs57, (0.02845966972, 0.0306463), ge=lambda a, b: (0.49 * b - a * b - 0.09,), low=[0.4, -4])
add(
    60,
    [2, 2, 2],
    lambda a, b, c: (a - 1) ** 2 + (a - b) ** 2 + (b - c) ** 4,
    0.03256820025,
    eq=lambda a, b, c: (a * (1 + b**2) + c**4 - 4 - 3 * 2**0.5,),
    low=-10,
    high=10,
)
add(
    61,
    [0, 0, 0],
    lambda a, b, c: 4 * a**2 + 2 * b**2 + 2 * c**2 - 33 * a + 16 * b - 24 * c,
    -143.6461422,
    eq=lambda a, b, c: (3 * a - 2 * b**2 - 7, 4 * a - c**2 - 11),
)
add(62, [0.7, 0.2, 0.1], hs62, -26272.51448, eq=lambda a, b, c: (a + b + c - 1,), low=0, high=1)
add(
    63,
    [2, 2, 2],
    lambda a, b, c: 1000 - a**2 - 2 * b**2 - c**2 - a * b - a * c,
    961.7151721,
    eq=lambda a, b, c: (8 * a + 14 * b + 7 * c - 56, a**2 + b**2 + c**2 - 25),
    low=0,
)
add(
    64,
    [1, 1, 1],
    lambda a, b, c: 5 * a + 50000 / a + 20 * b + 72000 / b + 10 * c + 144000 / c,
    6299.842428,
    ge=lambda a, b, c: (1 - 4 / a - 32 / b - 120 / c,),
    low=1e-5,
)
add(
    65,
    [-5, 5, 0],
    lambda a, b, c: (a - b) ** 2 + (a + b - 10) ** 2 / 9 + (c - 5) ** 2,
    0.9535288567,
    ge=lambda a, b, c: (48 - a**2 - b**2 - c**2,),
    low=[-4.5, -4.5, -5],
    high=[4.5, 4.5, 5],
)
add(
    66,
    [0, 1.05, 2.9],
    lambda a, b, c: 0.2 * c - 0.8 * a,
    0.5181632741,
    ge=lambda a, b, c: (b - exp(a), c - exp(b)),
    low=0,
    high=[100, 100, 10],
)
add(
    71,
    [1, 5, 5, 1],
    lambda a, b, c, d: a * d * (a + b + c) + c,
    17.0140173,
    eq=lambda a, b, c, d: (a**2 + b**2 + c**2 + d**2 - 40,),
    ge=lambda a, b, c, d: (a * b * c * d - 25,),
    low=1,
    high=5,
)
add(
    72,
    [1, 1, 1, 1],
    lambda a, b, c, d: 1 + a + b + c + d,
    727.67937,
    ge=lambda a, b, c, d: (
        0.0401 - 4 / a - 2.25 / b - 1 / c - 0.25 / d,
        0.010085 - 0.16 / a - 0.36 / b - 0.64 / c - 0.64 / d,
    ),
    low=0.001,
    high=[4e5, 3e5, 2e5, 1e5],
)
add(
    73,
    [1, 1, 1, 1],
    lambda a, b, c, d: 24.55 * a + 26.75 * b + 39 * c + 40.50 * d,
    29.894378,
    eq=lambda a, b, c, d: (a + b + c + d - 1,),
    ge=lambda a, b, c, d: (
        2.3 * a + 5.6 * b + 11.1 * c + 1.3 * d - 5,
        12 * a + 11.9 * b + 41.8 * c + 52.1 * d - 21
        - 1.645 * sqrt(0.28 * a**2 + 0.19 * b**2 + 20.5 * c**2 + 0.62 * d**2),
    ),
    low=0,
)  # fmt: skip
for number, width, minimum in ((74, 0.55, 5126.4981), (75, 0.48, 5174.4129)):
    add(
        number,
        [0, 0, 0, 0],
        lambda a, b, c, d: 3 * a + 1e-6 * a**3 + 2 * b + 2e-6 / 3 * b**3,
        minimum,
        eq=lambda a, b, c, d: (
            1000 * sin(-c - 0.25) + 1000 * sin(-d - 0.25) + 894.8 - a,
            1000 * sin(c - 0.25) + 1000 * sin(c - d - 0.25) + 894.8 - b,
            1000 * sin(d - 0.25) + 1000 * sin(d - c - 0.25) + 1294.8,
        ),
        ge=lambda a, b, c, d, width=width: (d - c + width, c - d + width),
        low=[0, 0, -width, -width],
        high=[1200, 1200, width, width],
    )
add(
    76,
    [0.5, 0.5, 0.5, 0.5],
    lambda a, b, c, d: a**2 + b**2 / 2 + c**2 + d**2 / 2 - a * c + c * d - a - 3 * b + c - d,
    -4.681818181,
    ge=lambda a, b, c, d: (5 - a - 2 * b - c - d, 4 - 3 * a - b - 2 * c + d, b + 4 * c - 1.5),
    low=0,
)
add(
    77,
    [2, 2, 2, 2, 2],
    lambda a, b, c, d, e: (a - 1) ** 2 + (a - b) ** 2 + (c - 1) ** 2 + (d - 1) ** 4 + (e - 1) ** 6,
    0.24150513,
    eq=lambda a, b, c, d, e: (a**2 * d + sin(d - e) - 2 * 2**0.5, b + c**4 * d**2 - 8 - 2**0.5),
)
SPHERE = lambda a, b, c, d, e: (a**2 + b**2 + c**2 + d**2 + e**2 - 10, b * c - 5 * d * e, a**3 + b**3 + 1)  # noqa: E731
add(78, [-2, 1.5, 2, -1, -1], lambda a, b, c, d, e: a * b * c * d * e, -2.91970041, eq=SPHERE)
add(
    79,
    [2, 2, 2, 2, 2],
    lambda a, b, c, d, e: (a - 1) ** 2 + (a - b) ** 2 + (b - c) ** 2 + (c - d) ** 4 + (d - e) ** 4,
    0.0787768209,
    eq=lambda a, b, c, d, e: (a + b**2 + c**3 - 2 - 3 * 2**0.5, b - c**2 + d + 2 - 2 * 2**0.5, a * e - 2),
)
WIDE = [2.3, 2.3, 3.2, 3.2, 3.2]
for number, objective in (
    (80, lambda a, b, c, d, e: exp(a * b * c * d * e)),
    (81, lambda a, b, c, d, e: exp(a * b * c * d * e) - (a**3 + b**3 + 1) ** 2 / 2),
):
    add(number, [-2, 2, 2, -1, -1], objective, (0.0539498478, 1), eq=SPHERE, low=[-x for x in WIDE], high=WIDE)


def hs83(a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor) -> tuple[Tensor, ...]:
    ranged = (
        (85.334407 + 0.0056858 * b * e + 0.0006262 * a * d - 0.0022053 * c * e, 92),
        (80.51249 + 0.0071317 * b * e + 0.0029955 * a * b + 0.0021813 * c**2 - 90, 20),
        (9.300961 + 0.0047026 * c * e + 0.0012547 * a * c + 0.0019085 * c * d - 20, 5),
    )
    return tuple(side for value, width in ranged for side in (value, width - value))


add(
    83,
    [78, 33, 27, 27, 27],
    lambda a, b, c, d, e: 5.3578547 * c**2 + 0.8356891 * a * e + 37.293239 * a - 40792.141,
    -30665.53867,
    ge=hs83,
    low=[78, 33, 27, 27, 27],
    high=[102, 45, 45, 45, 45],
)

# Colville's first and second problem, of which the second is the dual of the first
C86 = torch.tensor(
    [
        [30, -20, -10, 32, -10],
        [-20, 39, -6, -31, 32],
        [-10, -6, 10, -6, -10],
        [32, -31, -6, 39, -20],
        [-10, 32, -10, -20, 30],
    ],
    dtype=torch.float64,
)
D86, E86 = real(4, 8, 10, 6, 2), real(-15, -27, -36, -18, -12)
A86 = torch.tensor(
    [
        [-16, 2, 0, 1, 0], [0, -2, 0, 4, 2], [-3.5, 0, 2, 0, 0], [0, -2, 0, -4, -1], [0, -9, -2, 1, -2.8],
        [2, 0, -4, 0, 0], [-1, -1, -1, -1, -1], [-1, -2, -3, -2, -1], [1, 2, 3, 4, 5], [1, 1, 1, 1, 1],
    ],
    dtype=torch.float64,
)  # fmt: skip
B86 = real(-40, -2, -0.25, -4, -4, -1, -40, -60, 5, 1)


def joined(*z: Tensor) -> Tensor:
    return torch.stack(z, -1)


add(
    86,
    [0, 0, 0, 0, 1],
    lambda *z: (joined(*z) * (E86 + joined(*z) @ C86)).sum(-1) + (joined(*z) ** 3 @ D86),
    -32.34867897,
    ge=lambda *z: (joined(*z) @ A86.T - B86).unbind(-1),
    low=0,
)
add(
    93,
    [5.54, 4.4, 12.02, 11.82, 0.702, 0.852],
    lambda a, b, c, d, e, f: (
        0.0204 * a * d * (a + b + c) + 0.0187 * b * c * (a + 1.57 * b + d)
        + 0.0607 * a * d * e**2 * (a + b + c) + 0.0437 * b * c * f**2 * (a + 1.57 * b + d)
    ),
    135.075961,
    ge=lambda a, b, c, d, e, f: (
        0.001 * a * b * c * d * e * f - 2.07,
        1 - 0.00062 * a * d * e**2 * (a + b + c) - 0.00058 * b * c * f**2 * (a + 1.57 * b + d),
    ),
    low=0,
)  # fmt: skip
for number, floor, minima in (
    (95, (4.97, -1.88, -29.08, -78.02), (0.015619514,)),
    (96, (4.97, -1.88, -69.08, -118.02), (0.015619514,)),
    (97, (32.97, 25.12, -29.08, -78.02), (3.1358091, 4.0712464)),
    (98, (32.97, 25.12, -124.08, -173.02), (3.1358091, 4.0712464)),
):
    add(
        number,
        [0, 0, 0, 0, 0, 0],
        lambda a, b, c, d, e, f: 4.3 * a + 31.8 * b + 63.3 * c + 15.8 * d + 68.5 * e + 4.7 * f,
        minima,
        ge=lambda a, b, c, d, e, f, floor=floor: (
            17.1 * a + 38.2 * b + 204.2 * c + 212.3 * d + 623.4 * e + 1495.5 * f - 169 * a * c - 3580 * c * e - 3810 * d * e
            - 18500 * d * f - 24300 * e * f - floor[0],
            17.9 * a + 36.8 * b + 113.9 * c + 169.7 * d + 337.8 * e + 1385.2 * f - 139 * a * c - 2450 * d * e - 16600 * d * f
            - 17200 * e * f - floor[1],
            -273 * b - 70 * d - 819 * e + 26000 * d * e - floor[2],
            159.9 * a - 311 * b + 587 * d + 391 * e + 2198 * f - 14000 * a * f - floor[3],
        ),
        low=0,
        high=[0.31, 0.046, 0.068, 0.042, 0.028, 0.0134],
    )  # fmt: skip
add(
    100,
    [1, 2, 0, 4, 0, 1, 1],
    lambda a, b, c, d, e, f, g: (
        (a - 10) ** 2
        + 5 * (b - 12) ** 2
        + c**4
        + 3 * (d - 11) ** 2
        + 10 * e**6
        + 7 * f**2
        + g**4
        - 4 * f * g
        - 10 * f
        - 8 * g
    ),
    680.6300573,
    ge=lambda a, b, c, d, e, f, g: (
        127 - 2 * a**2 - 3 * b**4 - c - 4 * d**2 - 5 * e,
        282 - 7 * a - 3 * b - 10 * c**2 - d + e,
        196 - 23 * a - b**2 - 6 * f**2 + 8 * g,
        -4 * a**2 - b**2 + 3 * a * b - 2 * c**2 - 5 * f + 11 * g,
    ),
)


def hs104(a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor, f: Tensor, g: Tensor, h: Tensor) -> Tensor:
    return 0.4 * (a / g) ** 0.67 + 0.4 * (b / h) ** 0.67 + 10 - a - b


add(
    104,
    [6, 3, 0.4, 0.2, 6, 6, 1, 0.5],
    hs104,
    3.9511634396,
    ge=lambda a, b, c, d, e, f, g, h: (
        1 - 0.0588 * e * g - 0.1 * a,
        1 - 0.0588 * f * h - 0.1 * a - 0.1 * b,
        1 - 4 * c / e - 2 * c**-0.71 / e - 0.0588 * c**-1.3 * g,
        1 - 4 * d / f - 2 * d**-0.71 / f - 0.0588 * d**-1.3 * h,
        hs104(a, b, c, d, e, f, g, h) - 1,
        4.2 - hs104(a, b, c, d, e, f, g, h),
    ),
    low=0.1,
    high=10,
)
add(
    106,
    [5000, 5000, 5000, 200, 350, 150, 225, 425],
    lambda a, b, c, d, e, f, g, h: a + b + c,
    (7049.248, 7049.330923),
    ge=lambda a, b, c, d, e, f, g, h: (
        1 - 0.0025 * (d + f),
        1 - 0.0025 * (e + g - d),
        1 - 0.01 * (h - e),
        a * f - 833.33252 * d - 100 * a + 83333.333,
        b * g - 1250 * e - b * d + 1250 * d,
        c * h - 1250000 - c * e + 2500 * e,
    ),
    low=[100, 1000, 1000, 10, 10, 10, 10, 10],
    high=[10000, 10000, 10000, 1000, 1000, 1000, 1000, 1000],
)
C112 = real(-6.089, -17.164, -34.054, -5.914, -24.721, -14.986, -24.1, -10.708, -26.662, -22.179)
BALANCE = lambda a, b, c, d, e, f, g, h, i, j: (  # noqa: E731
    a + 2 * b + 2 * c + f + j - 2,
    d + 2 * e + f + g - 1,
    c + g + h + 2 * i + j - 1,
)
add(
    111,
    [-2.3] * 10,
    lambda *z: (exp(joined(*z)) * (C112 + joined(*z) - torch.logsumexp(joined(*z), -1, keepdim=True))).sum(-1),
    -47.76109026,
    eq=lambda *z: BALANCE(*(exp(x) for x in z)),
    low=-100,
    high=100,
)
add(
    112,
    [0.1] * 10,
    lambda *z: (joined(*z) * (C112 + log(joined(*z) / joined(*z).sum(-1, keepdim=True)))).sum(-1),
    -47.76109026,
    eq=BALANCE,
    low=1e-6,
)
add(
    113,
    [2, 3, 5, 5, 1, 2, 7, 3, 6, 10],
    lambda a, b, c, d, e, f, g, h, i, j: (
        a**2 + b**2 + a * b - 14 * a - 16 * b + (c - 10) ** 2 + 4 * (d - 5) ** 2 + (e - 3) ** 2 + 2 * (f - 1) ** 2 + 5 * g**2
        + 7 * (h - 11) ** 2 + 2 * (i - 10) ** 2 + (j - 7) ** 2 + 45
    ),
    24.3062091,
    ge=lambda a, b, c, d, e, f, g, h, i, j: (
        105 - 4 * a - 5 * b + 3 * g - 9 * h,
        -10 * a + 8 * b + 17 * g - 2 * h,
        8 * a - 2 * b - 5 * i + 2 * j + 12,
        -3 * (a - 2) ** 2 - 4 * (b - 3) ** 2 - 2 * c**2 + 7 * d + 120,
        -5 * a**2 - 8 * b - (c - 6) ** 2 + 2 * d + 40,
        -0.5 * (a - 8) ** 2 - 2 * (b - 4) ** 2 - 3 * e**2 + f + 30,
        -(a**2) - 2 * (b - 2) ** 2 + 2 * a * b - 14 * e + 6 * f,
        3 * a - 6 * b - 12 * (i - 8) ** 2 + 7 * j,
    ),
)  # fmt: skip
add(
    117,
    [0.001] * 6 + [60] + [0.001] * 8,
    lambda *z: (
        -(joined(*z[:10]) @ B86)
        + (joined(*z[10:]) * (joined(*z[10:]) @ C86)).sum(-1)
        + 2 * (joined(*z[10:]) ** 3 @ D86)
    ),
    32.348679,
    ge=lambda *z: (2 * joined(*z[10:]) @ C86 + 3 * D86 * joined(*z[10:]) ** 2 + E86 - joined(*z[:10]) @ A86).unbind(-1),
    low=0,
)
