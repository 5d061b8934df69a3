"""Powell's dogleg: a trust region for Newton's method, and for Gauss–Newton on a fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchimplicit.linear import QR
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.parameters import check_positive
from torchimplicit.solvers.equations import Equations
from torchimplicit.solvers.tangent import check_squares
from torchimplicit.transforms import finished


class DoglegState(NamedTuple):
    """What the method remembers.

    value, jacobian : r(z), (B, m), and its Jacobian, (B, m, n).
    scale : the largest norm that each column of it has had, (B, n).
    radius : of the trust region in scaled unknowns, (B,).
    good : how many good steps a system has made in a row, (B,).
    factors : Q and R of the last Jacobian, where it is that of the condition; none before the first step.
    """

    value: Tensor
    jacobian: Tensor
    scale: Tensor
    radius: Tensor
    good: Tensor
    factors: tuple[Tensor, ...]


@dataclass(frozen=True)
class Dogleg:
    """The step p that makes ‖r + J p‖ small on the path from z over the Cauchy point to the Newton point, as far as ‖D p‖ ≤ Δ.

    D holds the largest norms that the columns of J have had, so that the units of the unknowns do not matter. Δ starts at
    ``factor`` · ‖D z0‖ and follows the ratio of the actual to the predicted decrease of ‖r‖²; a step with (nearly) none is
    not taken. The Newton point comes from a QR factorisation, never from JᵀJ. For a fit J has more rows than columns, and
    the Newton point is that of Gauss and Newton.
    Sources: Powell, A hybrid method for nonlinear equations (1970); Moré, Garbow and Hillstrom, User guide for MINPACK-1
    (1980), whose constants these are.
    """

    factor: float = 100.0
    max_steps: ClassVar[int] = 1000
    patience: ClassVar[int] = 20

    def __post_init__(self) -> None:
        check_positive("Dogleg: factor", self.factor)

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, DoglegState]:
        check_squares(equations, "Dogleg")
        value, jacobian = _tall(equations.jacobian_of_squares(z))
        norms = torch.linalg.vector_norm(jacobian.detach(), dim=-2)
        scale = torch.where(norms > 0, norms, 1)
        length = torch.linalg.vector_norm(scale * z.detach(), dim=-1)
        radius = self.factor * torch.where(length > 0, length, 1)
        good = torch.zeros_like(radius, dtype=torch.int64)
        return _condition(equations, value, jacobian), DoglegState(value, jacobian, scale, radius, good, ())

    def step(
        self, equations: Equations, z: Tensor, r: Tensor, state: DoglegState
    ) -> tuple[Tensor, Tensor, DoglegState]:
        value, jacobian, scale, radius, good, _ = state
        step, *QR = _dogleg(value, jacobian, scale, radius)
        factors = () if equations.kind.minimised else tuple(QR)  # for a fit J is not the condition's Jacobian
        length = torch.linalg.vector_norm(scale * step.detach(), dim=-1)
        trial = equations.attempt(equations.jacobian_of_squares, z + step)
        if trial is None:  # it raises there: the whole batch comes nearer
            radius = radius.minimum(length) / 4
            return z, r, DoglegState(value, jacobian, scale, radius, good, factors)
        norm, norm_new, predicted = (
            torch.linalg.vector_norm(v.detach(), dim=-1) for v in (value, trial.value, value + _apply(jacobian, step))
        )
        ratio = (1 - (norm_new / norm).square()) / (1 - (predicted / norm).square())
        taken, better = ratio >= 1e-4, ratio >= 0.1  # neither where NaN
        good = torch.where(better, good + 1, 0)
        wider = torch.where((ratio >= 0.5) | (good > 1), radius.maximum(2 * length), radius)
        narrower = torch.where(taken, 0.5, 0.25) * radius.minimum(length)
        radius = torch.where((ratio - 1).abs() <= 0.1, 2 * length, torch.where(better, wider, narrower))
        if not finished(~taken):
            rows = taken.unsqueeze(-1)
            value_new, jacobian_new = _tall(trial)
            z, value = torch.where(rows, z + step, z), torch.where(rows, value_new, value)
            jacobian = torch.where(rows.unsqueeze(-1), jacobian_new, jacobian)
            scale = scale.maximum(torch.linalg.vector_norm(jacobian.detach(), dim=-2).nan_to_num())
            r = _condition(equations, value, jacobian)
        return z, r, DoglegState(value, jacobian, scale, radius, good, factors)

    def inverse(self, state: DoglegState) -> tuple[Tensor, ...]:
        """The tensors of the last factors of a square system, to serve (transposed) in the backward."""
        return state.factors

    def from_tensors(self, tensors: Sequence[Tensor]) -> Any:
        """The inverse again."""
        return QR.from_tensors(tensors)


def _dogleg(value: Tensor, jacobian: Tensor, scale: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The step a · (scaled gradient) + b · (Newton's step), and the factors Q, R of J. The recorded gradient takes a and b as given."""
    Q, R = torch.linalg.qr(torch.where(jacobian.isfinite(), jacobian, 0))
    newton = -torch.linalg.solve_triangular(R, Q.mT @ value.unsqueeze(-1), upper=True).squeeze(-1)
    usable = newton.detach().isfinite().all(-1, keepdim=True)
    newton = torch.where(usable, newton, 0)
    gradient = _apply(jacobian.mT, value) / scale
    with torch.no_grad():
        size = torch.linalg.vector_norm(gradient, dim=-1)
        unit = gradient / torch.where(size > 0, size, 1).unsqueeze(-1)
        slope = torch.linalg.vector_norm(_apply(jacobian, unit / scale), dim=-1)
        cauchy = (size / slope.square()).minimum(radius).nan_to_num(nan=0.0)  # how far down the gradient
        length = torch.linalg.vector_norm(scale * newton, dim=-1)
        # Between the Cauchy point c and the Newton point c + d: |c + τ d| = Δ.
        c = -cauchy.unsqueeze(-1) * unit
        d = scale * newton - c
        dd, cd = d.square().sum(-1), (c * d).sum(-1)
        room = (radius - cauchy) * (radius + cauchy)
        root = (cd.square() + dd * room).clamp(min=0).sqrt()
        tau = torch.where(cd > 0, room / (cd + root), (root - cd) / dd).nan_to_num(nan=0.0).clamp(0, 1)
        inside = usable.squeeze(-1) & (length <= radius)
        tau = torch.where(inside, 1, torch.where(usable.squeeze(-1), tau, 0))
        down = (1 - tau) * cauchy / torch.where(size > 0, size, 1)
    return tau.unsqueeze(-1) * newton - down.unsqueeze(-1) * gradient / scale, Q, R


def _tall(linearised: Jacobian) -> tuple[Tensor, Tensor]:
    """The value and the dense Jacobian, with rows of zeros where it has fewer than columns."""
    value, jacobian = linearised.value, linearised.to_dense()
    missing = max(0, jacobian.shape[-1] - jacobian.shape[-2])
    return pad(value, (0, missing)), pad(jacobian, (0, 0, 0, missing))


def _apply(jacobian: Tensor, x: Tensor) -> Tensor:
    return (jacobian @ x.unsqueeze(-1)).squeeze(-1)


def _condition(equations: Equations, value: Tensor, jacobian: Tensor) -> Tensor:
    """What vanishes at the solution: r itself, or Jᵀr for a fit."""
    return _apply(jacobian.mT, value) if equations.kind.minimised else value
