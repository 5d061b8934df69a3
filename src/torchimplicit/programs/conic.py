"""A batch of cone programs, and the conditions of their solutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.programs.cones import Cones
from torchimplicit.programs.faces import vanishing
from torchimplicit.programs.matrix import Matrix

PART = 1e-3  # of what multipliers and slacks must be, as the data say: what is smaller may still be more than rounding


@dataclass(frozen=True)
class ConePrograms:
    """Minimise ½ zᵀPz + qᵀz over Az + s = b, s ∈ K, for batches of any shape: q (..., n), b (..., m).

    Their multipliers y ∈ K* have Pz + q + Aᵀy = 0 and sᵀy = 0.
    """

    P: Matrix | None
    q: Tensor
    A: Matrix
    b: Tensor
    cones: Cones

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Those of the data, P first, if there is one."""
        first = () if self.P is None else (self.P.values,)
        return (*first, self.q, self.A.values, self.b)

    @property
    def core(self) -> tuple[int, ...]:
        """How many dimensions of each follow those of the batch."""
        first = () if self.P is None else (self.P.core,)
        return (*first, 1, self.A.core, 1)

    def of(self, tensors: tuple[Tensor, ...]) -> ConePrograms:
        """The same with other tensors."""
        *first, q, A, b = tensors
        P = None if self.P is None else self.P.of(first[0])
        return ConePrograms(P, q, self.A.of(A), b, self.cones)

    def expanded(self, systems: int) -> ConePrograms:
        """For so many systems, (B,), where some data have no batch dimension."""
        pairs = zip(self.tensors, self.core, strict=True)
        return self.of(tuple(t.expand(systems, *t.shape[t.ndim - core :]) for t, core in pairs))

    def of_systems(self, which: Tensor | slice) -> ConePrograms:
        """Some systems of a batch (B,)."""
        return self.of(tuple(t[which] for t in self.tensors))

    def curvature(self, z: Tensor) -> Tensor:
        """Pz, of the symmetric part of P."""
        return torch.zeros_like(z) if self.P is None else (self.P.times(z) + self.P.transposed(z)) / 2

    def slack(self, z: Tensor) -> Tensor:
        """b − Az."""
        return self.b - self.A.times(z)

    def units(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """About what slacks and multipliers are, as numbers without a derivative, (..., 1) each."""
        of_A = _positive(self.A.largest())
        q, b = (
            v.detach().abs().amax(-1, keepdim=True) if v.shape[-1] else v[..., :0].sum(-1, True)
            for v in (self.q, self.b)
        )
        z = (b / of_A).maximum(z.detach().abs().amax(-1, keepdim=True))
        of_P = None if self.P is None else self.P.largest()
        if of_P is not None:
            z = z.maximum(torch.where(of_P > 0, PART * q / _positive(of_P), 0))
        pull = q if of_P is None else q + of_P * z
        y = y.detach().abs().amax(-1, keepdim=True) if y.shape[-1] else y.detach().sum(-1, True)
        return _positive(of_A * z), _positive(y.maximum(PART * pull / of_A))

    def in_cones(self, f: Callable[[str, Tensor, Tensor], Tensor], s: Tensor, y: Tensor) -> list[Tensor]:
        """f of the kind of cone and of s and y there, (..., cones, size), for each block of cones."""
        return [f(block.kind, block.of(s), block.of(y)) for block in self.cones.blocks]

    def conditions(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """What vanishes at a solution with its multipliers: the gradient (..., n), and what does on the face of each cone, (..., m)."""
        gradient = self.curvature(z) + self.q + self.A.transposed(y)
        s = self.slack(z)
        of_s, of_y = self.units(z, y)
        faces = [face.flatten(-2) for face in self.in_cones(vanishing, s / of_s, y / of_y)]
        return gradient, torch.cat([y[..., :0], *faces], -1)


def _positive(size: Tensor) -> Tensor:
    return torch.where((size > 0) & (size < torch.inf), size, 1)
