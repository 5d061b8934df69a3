"""A batch of cone programs, and the conditions of their solutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.programs.cones import Block, Cones
from torchimplicit.programs.faces import vanishing
from torchimplicit.programs.matrix import Matrix

FORMED = 256  # unknowns and multipliers up to which sparse matrices are written out
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

    def jacobian(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The conditions of systems (B,) as one vector (B, n + m), and their Jacobian (B, n + m, n + m), cone by cone."""
        n, m = z.shape[-1], y.shape[-1]
        residual, faces = self.linearised(z, y)
        (of_s, of_y), A = self.units(z, y), self.A.dense()
        J = z.new_zeros(len(z), n + m, n + m)
        J[:, :n, n:] = A.mT
        if self.P is not None:
            P = self.P.dense()
            J[:, :n, :n] = (P + P.mT) / 2
        for block, in_s, in_y in faces:
            first, last = n + block.start, n + block.start + block.cones * block.size
            rows = A[:, first - n : last - n].unflatten(-2, (block.cones, block.size))
            J[:, first:last, :n] = -(in_s / of_s[..., None, None] @ rows).flatten(1, 2)
            places = torch.arange(first, last, device=z.device).reshape(block.cones, block.size)
            J[:, places.unsqueeze(-1), places.unsqueeze(-2)] = in_y / of_y[..., None, None]
        return residual, J

    def linearised(self, z: Tensor, y: Tensor) -> tuple[Tensor, list[tuple[Block, Tensor, Tensor]]]:
        """The conditions as one vector (B, n + m), and for each block of cones the derivatives of what vanishes on their faces, in
        slacks and in multipliers, in their units, (B, cones, size, size) each."""
        (of_s, of_y), s = self.units(z, y), self.slack(z)
        values = [self.curvature(z) + self.q + self.A.transposed(y)]
        faces = []
        for block in self.cones.blocks:
            pair = torch.cat([block.of(s / of_s), block.of(y / of_y)], -1).flatten(0, 1)
            face = Jacobian(lambda pair, kind=block.kind: vanishing(kind, *pair.chunk(2, -1)), pair)  # type: ignore[misc]
            values.append(face.value.reshape(len(z), block.cones * block.size))
            faces.append((block, *face.to_dense().unflatten(0, (len(z), block.cones)).chunk(2, -1)))
        return torch.cat(values, -1), faces

    @property
    def by_entries(self) -> bool:
        """Whether their Jacobians are to be formed by entries: they are large, and the matrices sparse."""
        large = self.q.shape[-1] + self.b.shape[-1] > FORMED
        sparse = self.A.pattern is not None and (self.P is None or self.P.pattern is not None)
        return large and sparse and self.q.device.type == "cpu" and find_spec("scipy") is not None


def _positive(size: Tensor) -> Tensor:
    return torch.where((size > 0) & (size < torch.inf), size, 1)
