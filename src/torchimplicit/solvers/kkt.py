"""The matrix of the optimality conditions of a minimum under constraints, and what is asked of it; here as one written out.

K is (B, N, N), the Jacobian of F(w) = (∇L, c, −h) in w = (z, multipliers): its first n rows are those of ∇L, the rows below
J = (∇c, −∇h) of the constraints, and to the right of the Hessian are (∇c, ∇h)ᵀ.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from torchimplicit.solvers.projected_newton import newton_direction

SEMIDEFINITE = 0.5  # eps to this power, of the largest entry: an eigenvalue of a Hessian that may be 0


class Curvature(Protocol):
    """∇²L + Jᵀ Ω J, the Hessian (B, n, n) of the augmented Lagrangian, for penalties Ω."""

    def convex(self, held: Tensor) -> Tensor:
        """Whether it has no negative eigenvalue in the unknowns that are not ``held`` (B, n): (B,)."""
        ...

    def direction(self, gradient: Tensor, held: Tensor, damping: Tensor) -> Tensor:
        """A direction downhill, (B, n): Newton's where it is convex, with the ``damping`` (B,) on the diagonal; 0 for what is held."""
        ...


class Kkt(Protocol):
    """What is asked of K."""

    def where(self, rows: Tensor, other: Any) -> Kkt:
        """This one in those systems, (B,), the other elsewhere."""
        ...

    def plus(self, diagonal: Tensor) -> Kkt:
        """K with (B, N) more on the diagonal."""
        ...

    def times(self, x: Tensor) -> Tensor:
        """K x, (B, N)."""
        ...

    def transposed(self, y: Tensor) -> Tensor:
        """Kᵀ y, (B, N)."""
        ...

    def largest(self, columns: int) -> Tensor:
        """The size of the largest entry of each row in the first columns, (B, N)."""
        ...

    def solved(self, held: Tensor, unit: Tensor, b: Tensor) -> Tensor:
        """x with x = b in those rows that are ``held`` (B, N), and K x = unit · b in the others."""
        ...

    def curvature(self, penalties: Tensor, signs: Tensor) -> Curvature:
        """∇²L + Jᵀ Ω J, for penalties (B, m), 0 where a constraint has no part; signs · J has the signs of the constraints."""
        ...


class Written(NamedTuple):
    """K as a tensor."""

    K: Tensor

    def where(self, rows: Tensor, other: Any) -> Written:
        return Written(torch.where(rows[:, None, None], self.K, other.K))

    def plus(self, diagonal: Tensor) -> Written:
        return Written(self.K + torch.diag_embed(diagonal))

    def times(self, x: Tensor) -> Tensor:
        return (self.K @ x.unsqueeze(-1)).squeeze(-1)

    def transposed(self, y: Tensor) -> Tensor:
        return (self.K.mT @ y.unsqueeze(-1)).squeeze(-1)

    def largest(self, columns: int) -> Tensor:
        return self.K[:, :, :columns].abs().amax(-1)

    def solved(self, held: Tensor, unit: Tensor, b: Tensor) -> Tensor:
        eye = torch.eye(b.shape[-1], dtype=b.dtype, device=b.device)
        A = torch.where(held.unsqueeze(-1), eye, self.K / unit.unsqueeze(-1))
        return torch.linalg.solve_ex(A, b.unsqueeze(-1))[0].squeeze(-1)

    def curvature(self, penalties: Tensor, signs: Tensor) -> Curvature:
        n = self.K.shape[-1] - signs.shape[-1]
        J = signs.unsqueeze(-1) * self.K[:, n:, :n]
        return Hessian(self.K[:, :n, :n] + J.mT @ (penalties.unsqueeze(-1) * J))


class Hessian(NamedTuple):
    """The curvature as a tensor."""

    H: Tensor

    def convex(self, held: Tensor) -> Tensor:
        H = self.H
        either = held.unsqueeze(-1) | held.unsqueeze(-2)
        largest = H.abs().amax((-2, -1)).clamp(min=torch.finfo(H.dtype).tiny)
        shifted = torch.where(either, 0, (H + H.mT) / 2) / largest[:, None, None]
        shift = torch.finfo(shifted.dtype).eps ** SEMIDEFINITE
        shifted = shifted + torch.diag_embed(torch.where(held, 1, shift))
        return torch.linalg.cholesky_ex(shifted.nan_to_num()).info == 0

    def direction(self, gradient: Tensor, held: Tensor, damping: Tensor) -> Tensor:
        return newton_direction(self.H, gradient, held, damping)
