"""The Jacobian of a cone program's conditions by its entries, and what is left of it for the derivative."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from torchimplicit.linear.pattern import Pattern
from torchimplicit.linear.solver import Refusing
from torchimplicit.linear.superlu import SuperLU
from torchimplicit.programs.conic import ConePrograms
from torchimplicit.programs.matrix import Matrix


def entries_of_jacobian(programs: ConePrograms, z: Tensor, y: Tensor) -> tuple[Tensor, Matrix]:
    """As :meth:`ConePrograms.jacobian`, of programs whose matrices are sparse: a cone of k rows has k of its own, with the entries of
    all of them in each."""
    n, m = z.shape[-1], y.shape[-1]
    A, pattern = programs.A.values.expand(len(z), -1), programs.A.pattern
    assert pattern is not None
    rows, columns = [pattern.columns], [n + pattern.rows]  # Aᵀ
    values = [A]
    if programs.P is not None and programs.P.pattern is not None:
        P, half = programs.P.pattern, programs.P.values.expand(len(z), -1) / 2
        rows += [P.rows, P.columns]
        columns += [P.columns, P.rows]
        values += [half, half]
    of_s, of_y = programs.units(z, y)
    residual, faces = programs.linearised(z, y)
    for block, in_s, in_y in faces:
        k = block.size
        each = torch.arange(k, device=z.device)
        own = ((pattern.rows >= block.start) & (pattern.rows < block.start + block.cones * k)).nonzero().flatten()
        cone, within = (pattern.rows[own] - block.start) // k, (pattern.rows[own] - block.start) % k
        first = n + block.start + cone * k
        weights = in_s[:, cone, :, within].movedim(0, 1) / of_s.unsqueeze(-1)  # (B, entries, k)
        rows.append((first.unsqueeze(-1) + each).flatten())
        columns.append(pattern.columns[own].repeat_interleave(k))
        values.append(-(weights * A[:, own].unsqueeze(-1)).flatten(1))
        places = n + block.start + torch.arange(block.cones * k, device=z.device).reshape(block.cones, k)
        rows.append(places.repeat_interleave(k, 1).flatten())
        columns.append(places.repeat(1, k).flatten())
        values.append((in_y / of_y[..., None, None]).flatten(1))
    return residual, _added(torch.cat(rows), torch.cat(columns), torch.cat(values, -1), n + m)


def _added(rows: Tensor, columns: Tensor, values: Tensor, size: int) -> Matrix:
    """The matrices with those entries, added up where several have one place, and with all of the diagonal."""
    diagonal = torch.arange(size, device=rows.device)
    rows, columns = torch.cat([rows, diagonal]), torch.cat([columns, diagonal])
    values = torch.nn.functional.pad(values, (0, size))
    key, place = (rows * size + columns).unique(return_inverse=True)
    sums = values.new_zeros(len(values), len(key)).index_add(-1, place, values)
    return Matrix(sums, Pattern(key // size, key % size, size, size))


class SparseConeInverse(Refusing):
    """As :class:`torchimplicit.programs.cone_solving.ConeInverse`, by the entries of the Jacobian, which are factorised when the
    derivative is asked for.

    tensors : ``refused``, the entries (B, e), and their places, row by row, which are the same for all systems, (B, e).
    """

    @staticmethod
    def tensors(refused: Tensor, J: Matrix) -> tuple[Tensor, ...]:
        """Those that one is made of."""
        assert J.pattern is not None
        places = J.pattern.rows * J.pattern.n + J.pattern.columns
        return refused, J.values, places.expand(len(refused), -1)

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.refused, self.values, self.places = tensors

    @cached_property
    def factors(self) -> SuperLU:
        """Those of SuperLU."""
        size = math.isqrt(int(self.places[0, -1]) + 1)  # the last place is the last of the diagonal
        return SuperLU(self.values, Pattern(self.places[0] // size, self.places[0] % size, size, size))

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """w with J w = b, or Jᵀ w = b, (*lead, B, N)."""
        return self.factors.solve(b.to(self.values.dtype), adjoint).to(b.dtype)

    @property
    def suspicious(self) -> Tensor:
        return self.factors.suspicious
