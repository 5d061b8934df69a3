"""Problems to be posed in every unit, the methods for each, and their solutions and gradients by dense linear algebra."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torchimplicit.solvers import Backtracking, Broyden, Newton

from ..every_solver import GENERAL
from .outcomes import D, S

slow = pytest.mark.slow


def fast_but(slow_ones: set[str], names: list[str]) -> list[Any]:
    """All of them, some marked slow."""
    return [pytest.param(name, marks=[slow] * (name in slow_ones)) for name in names]


# Their plain steps z − g(z), or a first inverse Jacobian that is the identity, are those of a g that has z's unit.
UNIT_OF_Z = {"broyden", "anderson", "picard"}
LINE_SEARCH = Newton(line_search=Backtracking())
EQUATIONS: dict[str, Any] = {name: name for name in GENERAL if name not in UNIT_OF_Z} | {
    "auto": "auto",
    "newton with a line search": LINE_SEARCH,
    "broyden from a jacobian": Broyden(start="jacobian"),
}
AFFINE = ["newton", "chord"]  # what they do is the same for every A g
BRACKETS = ["bisection", "chandrupatla", "itp"]
MINIMISERS = [
    "auto",
    "newton_cg",
    "bfgs",
    "lbfgs",
    "nonlinear_cg",
    "newton",
    "chord",
    "newton_krylov",
    "pseudo_transient",
]
SQUARES = ["auto", "gauss_newton", "dogleg", *MINIMISERS[1:]]

LONG = {"nonlinear_cg", "pseudo_transient", "newton_krylov", "chord"}

DTYPES = {"double": (D, 300), "single": (S, 40)}
A = torch.tensor([[1.3, 0.4, -0.2], [-0.3, 0.9, 0.1], [0.2, -0.5, 1.1]], dtype=D)
H = torch.tensor([[3.0, 0.5, -0.3], [0.5, 1.0, 0.2], [-0.3, 0.2, 0.6]], dtype=D)
X = torch.tensor([1.0, -2.0, 0.5], dtype=D)
T = torch.linspace(0, 2, 12, dtype=D)
Y = 3 * (-1.5 * T).exp() + 0.1 * (7 * T).sin()  # no curve goes through all of them


def cubic(z: Tensor, x: Tensor) -> Tensor:
    return A.to(z.dtype) @ z + 0.1 * z**3 - x


def bowl(z: Tensor, x: Tensor) -> Tensor:
    return z @ H.to(z.dtype) @ z / 2 + (z**4).sum() / 40 - x @ z


def decay(z: Tensor, y: Tensor) -> Tensor:
    return z[0] * (-z[1] * T.to(z.dtype)).exp() - y


def number(z: Tensor, x: Tensor) -> Tensor:
    return z**3 + z - x


def contraction(z: Tensor, x: Tensor) -> Tensor:
    return 0.4 * torch.tanh(A.to(z.dtype) @ z) + x


def polished_by_hand(jacobian_of: Callable[..., Tensor], z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The root in float64 and the gradient of its sum in x, by dense linear algebra."""
    for _ in range(100):
        step = torch.linalg.solve(torch.func.jacrev(jacobian_of)(z, x), jacobian_of(z, x))
        z = z - step
        if step.abs().max() <= 1e-13 * z.abs().max():
            break
    J, K = torch.func.jacrev(jacobian_of, argnums=(0, 1))(z, x)
    return z, -K.mT @ torch.linalg.solve(J.mT, torch.ones_like(z))


START = torch.tensor([0.5, 0.3, -0.4], dtype=D)
NEAR = torch.tensor([1.0, -2.0, 2.0], dtype=D)  # from where a chord finds the minimum too
ROOT = polished_by_hand(cubic, START, X)
LEAST = polished_by_hand(torch.func.grad(bowl), START, X)
FIT = polished_by_hand(
    torch.func.grad(lambda z, y: decay(z, y).square().sum() / 2), torch.tensor([3.0, 1.5], dtype=D), Y
)
FIXED = polished_by_hand(lambda z, x: z - contraction(z, x), START, X)


# They see the residuals themselves, and the others an objective, whose unit is the square of theirs.
SEE_RESIDUALS = {"auto", "gauss_newton", "dogleg"}
