"""Random quadratic programs whose solutions and multipliers are known, for they are chosen first."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

D = torch.float64


class Known(NamedTuple):
    data: tuple[Tensor, ...]  # Q, p, G, h, A, b
    z: Tensor
    inequality: Tensor
    equality: Tensor


def known(batch: int, n: int, m: int, k: int, held: int, rank: int | None = None, seed: int = 0) -> Known:
    """The first ``held`` inequalities hold z with multipliers of 0.1 or more, the others have a slack of 0.1 or more."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=D, generator=generator)

    L = random(batch, n, n if rank is None else rank)
    G, A, z = random(batch, m, n), random(batch, k, n), random(batch, n)
    Q, size = L @ L.mT, 0.1 + random(batch, m).abs()
    inequality = torch.where(torch.arange(m) < held, size, 0)
    equality = random(batch, k)
    p = -times(Q, z) - times(G.mT, inequality) - times(A.mT, equality)
    h = times(G, z) + torch.where(torch.arange(m) < held, 0, size)
    return Known((Q, p, G, h, A, times(A, z)), z, inequality, equality)


def times(matrix: Tensor, v: Tensor) -> Tensor:
    return (matrix @ v.unsqueeze(-1)).squeeze(-1)
