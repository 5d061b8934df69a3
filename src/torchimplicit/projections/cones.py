"""The second-order cone and the cone of positive semidefinite matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchimplicit.adjoints import Implicit
from torchimplicit.layout import HALF, describe
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.problems.root import root
from torchimplicit.projections.arguments import check
from torchimplicit.projections.balls import norm
from torchimplicit.solvers.equations import Equations, Estimate
from torchimplicit.solvers.method import Method
from torchimplicit.status import OnFailure


def second_order_cone(v: Tensor) -> Tensor:
    """The nearest z = (t, x) with ‖x‖ ≤ t, t the first of the n numbers.

    Args:
        v: vectors (..., n), n ≥ 2.

    On the two boundaries, ‖x‖ = ±t, it has one-sided derivatives; the one given is that of the inside.
    """
    check(v)
    if v.shape[-1] < 2:
        raise ValueError(f"second_order_cone: a vector is (t, x), two numbers or more; got a {describe(v)}.")
    t, x = v[..., 0], v[..., 1:]
    length = norm(x.detach())
    inside, polar = length <= t.detach(), length <= -t.detach()
    between = ~(inside | polar)
    r = norm(x, between)
    half = (t + r) / 2
    on = torch.cat([half.unsqueeze(-1), (half / r).unsqueeze(-1) * x], -1)
    return torch.where(inside.unsqueeze(-1), v, torch.where(polar.unsqueeze(-1), 0 * v, on))


def positive_semidefinite(V: Tensor, *, on_failure: OnFailure = "warn") -> Tensor:
    """The nearest symmetric matrix P without negative eigenvalues, in the Frobenius norm, to the symmetric part of V.

    P comes from the eigenvalues of V. Its derivatives, of every order, are those of the condition P² = (P V + V P) / 2: they are right
    where eigenvalues meet, where those of the eigenvectors do not exist. Their linear systems |V| X + X |V| = C cost another
    eigenvalue problem. Where V is singular there is none, and a backward says so (``Status.SINGULAR``).

    Args:
        V: matrices (..., n, n).
        on_failure: "warn", "raise", "nan" or "ignore".
    """
    check(V, 2)
    dtype = V.dtype
    if V.shape[-1] != V.shape[-2]:
        raise ValueError(f"positive_semidefinite: matrices must be square, (..., n, n); got a {describe(V)}.")
    wide = V.float() if V.dtype in HALF else V  # so that nothing has to be looked at for its noise
    V = (wide + wide.mT) / 2
    options: dict[str, Any] = {"solver": Spectral(), "adjoint": Implicit(Sylvester()), "on_failure": on_failure}
    P: Tensor = root(_vanishes, V.detach(), (V,), batch_ndim=V.ndim - 2, **options).value
    return P.to(dtype)


def _vanishes(P: Tensor, V: Tensor) -> Tensor:
    """P (P − V), the product of the two parts of V, which is symmetric."""
    other = P - V
    return (P @ other + other @ P) / 2


@dataclass(frozen=True)
class Spectral(Method):
    """The positive part of the matrix that is the start, by its eigenvalues; to rounding, so that no step is left."""

    max_steps: ClassVar[int] = 1
    patience: ClassVar[int] = 1
    in_graph: ClassVar[bool] = False
    unrolls: ClassVar[bool] = False

    def starting_point(self, z: Tensor) -> Tensor:
        V = _matrices(z)
        finite = V.isfinite().flatten(-2).all(-1)[..., None, None]
        values, Q = torch.linalg.eigh(torch.where(finite, V, 0))
        P = (Q * values.clamp(min=0).unsqueeze(-2)) @ Q.mT
        return torch.where(finite, P, torch.nan).flatten(-2)

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, None]:
        return equations.residual(z), None

    def step(self, equations: Equations, z: Tensor, r: Tensor, state: None) -> tuple[Tensor, Tensor, None]:
        return z, r, state

    def estimate(self, z: Tensor, r: Tensor, state: None) -> Estimate:
        return Estimate(torch.zeros_like(z), 0.0)


@dataclass(frozen=True)
class Sylvester:
    """X with S X + X S = C, for a linear operator X ↦ S X + X S of a symmetric matrix S: the one that maps the identity to 2 S."""

    def factorize(self, operator: LinearOperator) -> SylvesterFactors:
        n = round(operator.shape[-1] ** 0.5)
        eye = torch.eye(n, dtype=operator.dtype, device=operator.device).flatten()
        S = _matrices(operator.rmatvec(eye.expand(*operator.batch_shape, n * n))) / 2
        finite = S.isfinite().flatten(-2).all(-1)[..., None, None]
        values, Q = torch.linalg.eigh(torch.where(finite, S, 0))
        return SylvesterFactors(torch.where(finite.squeeze(-1), values, torch.nan), Q)


class SylvesterFactors:
    """The eigenvalues (..., n) and eigenvectors (..., n, n) of S."""

    title, final = "eigenvalues", True

    def __init__(self, values: Tensor, Q: Tensor) -> None:
        self.values, self.Q = values, Q

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """X for the right-hand sides C, as vectors (*lead, *batch_shape, n²)."""
        Q = self.Q
        sums = self.values.unsqueeze(-1) + self.values.unsqueeze(-2)
        return (Q @ ((Q.mT @ _matrices(b) @ Q) / sums) @ Q.mT).flatten(-2)

    @property
    def suspicious(self) -> Tensor:
        """Whether S is nearly singular: (...)."""
        return self.singular

    @property
    def singular(self) -> Tensor:
        """Whether S, which is positive semidefinite, is singular to working precision: (...)."""
        least, most = self.values.aminmax(dim=-1)
        return ~(least > 8 * self.values.shape[-1] * torch.finfo(least.dtype).eps * most)


def _matrices(z: Tensor) -> Tensor:
    """Vectors (..., n²) as matrices (..., n, n)."""
    n = round(z.shape[-1] ** 0.5)
    return z.unflatten(-1, (n, n))
