"""The 27 nonlinear regressions of the NIST Statistical Reference Datasets, as data for tests.

National Institute of Standards and Technology, "StRD: Nonlinear Least Squares Regression". The files in `nist/` are NIST's own, which
are in the public domain (only blanks at the ends of lines are gone): per dataset the observations, two starts, of which the second
is the easier one, and the certified parameters, their standard deviations and the residual sum of squares to 11 significant digits,
computed by NIST in 128 bits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

Model = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Regression:
    """Fit the k parameters b of `model` to m observations, in float64.

    `model` takes b (..., k) and x, and gives the predictions (..., m). `x` is (m,), or (m, 2) for Nelson; `y` is (m,), for Nelson the
    logarithms of what was observed, which is what its model predicts. `starts` is (2, k), `parameters` and `deviations` (k,).
    """

    name: str
    difficulty: str  # lower, average or higher
    model: Model
    x: Tensor
    y: Tensor
    starts: Tensor
    parameters: Tensor
    deviations: Tensor
    sum_of_squares: float

    def residuals(self, b: Tensor, y: Tensor) -> Tensor:
        """Prediction minus observation: b (..., k) and y (..., m) -> (..., m)."""
        return self.model(b, self.x) - y


def parameters(b: Tensor) -> tuple[Tensor, ...]:
    """The parameters one by one, each (..., 1), to be broadcast against m observations."""
    return b[..., None].unbind(-2)


def saturation(b: Tensor, x: Tensor) -> Tensor:
    """BoxBOD and Misra1a."""
    b1, b2 = parameters(b)
    return b1 * (1 - torch.exp(-b2 * x))


def misra_b(b: Tensor, x: Tensor) -> Tensor:
    b1, b2 = parameters(b)
    return b1 * (1 - (1 + b2 * x / 2) ** -2)


def misra_c(b: Tensor, x: Tensor) -> Tensor:
    b1, b2 = parameters(b)
    return b1 * (1 - (1 + 2 * b2 * x) ** -0.5)


def misra_d(b: Tensor, x: Tensor) -> Tensor:
    b1, b2 = parameters(b)
    return b1 * b2 * x / (1 + b2 * x)


def chwirut(b: Tensor, x: Tensor) -> Tensor:
    b1, b2, b3 = parameters(b)
    return torch.exp(-b1 * x) / (b2 + b3 * x)


def lanczos(b: Tensor, x: Tensor) -> Tensor:
    b1, b2, b3, b4, b5, b6 = parameters(b)
    return b1 * torch.exp(-b2 * x) + b3 * torch.exp(-b4 * x) + b5 * torch.exp(-b6 * x)


def gauss(b: Tensor, x: Tensor) -> Tensor:
    b1, b2, b3, b4, b5, b6, b7, b8 = parameters(b)
    peaks = b3 * torch.exp(-(((x - b4) / b5) ** 2)) + b6 * torch.exp(-(((x - b7) / b8) ** 2))
    return b1 * torch.exp(-b2 * x) + peaks


def danwood(b: Tensor, x: Tensor) -> Tensor:
    b1, b2 = parameters(b)
    return b1 * x**b2


def kirby(b: Tensor, x: Tensor) -> Tensor:
    b1, b2, b3, b4, b5 = parameters(b)
    return (b1 + b2 * x + b3 * x**2) / (1 + b4 * x + b5 * x**2)


def cubic_over_cubic(b: Tensor, x: Tensor) -> Tensor:
    """Hahn1 and Thurber."""
    b1, b2, b3, b4, b5, b6, b7 = parameters(b)
    return (b1 + b2 * x + b3 * x**2 + b4 * x**3) / (1 + b5 * x + b6 * x**2 + b7 * x**3)


def nelson(b: Tensor, x: Tensor) -> Tensor:
    b1, b2, b3 = parameters(b)
    time, temperature = x.unbind(-1)
    return b1 - b2 * time * torch.exp(-b3 * temperature)


def mgh17(b: Tensor, x: Tensor) -> Tensor:
    b1, b2, b3, b4, b5 = parameters(b)
    return b1 + b2 * torch.exp(-x * b4) + b3 * torch.exp(-x * b5)


def roszman(b: Tensor, x: Tensor) -> Tensor:
    b1, b2, b3, b4 = parameters(b)
    return b1 - b2 * x - torch.atan(b3 / (x - b4)) / math.pi


def enso(b: Tensor, x: Tensor) -> Tensor:
    b1, b2, b3, b4, b5, b6, b7, b8, b9 = parameters(b)
    turn = 2 * math.pi * x
    year = b2 * torch.cos(turn / 12) + b3 * torch.sin(turn / 12)
    first = b5 * torch.cos(turn / b4) + b6 * torch.sin(turn / b4)
    second = b8 * torch.cos(turn / b7) + b9 * torch.sin(turn / b7)
    return b1 + year + first + second


def mgh09(b: Tensor, x: Tensor) -> Tensor:
    b1, b2, b3, b4 = parameters(b)
    return b1 * (x**2 + x * b2) / (x**2 + x * b3 + b4)


def mgh10(b: Tensor, x: Tensor) -> Tensor:
    b1, b2, b3 = parameters(b)
    return b1 * torch.exp(b2 / (x + b3))


def rat42(b: Tensor, x: Tensor) -> Tensor:
    b1, b2, b3 = parameters(b)
    return b1 / (1 + torch.exp(b2 - b3 * x))


def rat43(b: Tensor, x: Tensor) -> Tensor:
    b1, b2, b3, b4 = parameters(b)
    return b1 / (1 + torch.exp(b2 - b3 * x)) ** (1 / b4)


def eckerle(b: Tensor, x: Tensor) -> Tensor:
    b1, b2, b3 = parameters(b)
    return b1 / b2 * torch.exp(-0.5 * ((x - b3) / b2) ** 2)


def bennett(b: Tensor, x: Tensor) -> Tensor:
    b1, b2, b3 = parameters(b)
    return b1 * (b2 + x) ** (-1 / b3)


def read(name: str, model: Model) -> Regression:
    """One file of NIST's. Its parameters stand in lines like `b1 = start 1, start 2, value, deviation`; the observations come last."""
    text = (Path(__file__).parent / "nist" / f"{name}.dat").read_text(encoding="ascii")
    header, _, observations = text.rpartition("Data:")
    rows = re.findall(r"^ *b\d+ *=(.*)$", header, flags=re.MULTILINE)
    table = torch.tensor([[float(number) for number in row.split()] for row in rows], dtype=torch.float64)
    lines = observations.splitlines()[1:]  # without the names of the columns
    data = torch.tensor([[float(number) for number in line.split()] for line in lines if line], dtype=torch.float64)
    (difficulty,) = re.findall(r"(Lower|Average|Higher) Level of Difficulty", header)
    (sum_of_squares,) = re.findall(r"Residual Sum of Squares: *(\S+)", header)
    y, x = data[:, 0], data[:, 1:]
    return Regression(
        name=name,
        difficulty=difficulty.lower(),
        model=model,
        x=x if name == "Nelson" else x[:, 0],
        y=torch.log(y) if name == "Nelson" else y,
        starts=table[:, :2].mT.contiguous(),
        parameters=table[:, 2].contiguous(),
        deviations=table[:, 3].contiguous(),
        sum_of_squares=float(sum_of_squares),
    )


PROBLEMS: tuple[Regression, ...] = (
    read("Misra1a", saturation),
    read("Chwirut2", chwirut),
    read("Chwirut1", chwirut),
    read("Lanczos3", lanczos),
    read("Gauss1", gauss),
    read("Gauss2", gauss),
    read("DanWood", danwood),
    read("Misra1b", misra_b),
    read("Kirby2", kirby),
    read("Hahn1", cubic_over_cubic),
    read("Nelson", nelson),
    read("MGH17", mgh17),
    read("Lanczos1", lanczos),
    read("Lanczos2", lanczos),
    read("Gauss3", gauss),
    read("Misra1c", misra_c),
    read("Misra1d", misra_d),
    read("Roszman1", roszman),
    read("ENSO", enso),
    read("MGH09", mgh09),
    read("Thurber", cubic_over_cubic),
    read("BoxBOD", saturation),
    read("Rat42", rat42),
    read("MGH10", mgh10),
    read("Eckerle4", eckerle),
    read("Rat43", rat43),
    read("Bennett5", bennett),
)
