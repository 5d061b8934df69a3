"""Bratu's equation on a mesh, and its solution and gradient by SciPy."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

M = 20


def laplacian(u: Tensor) -> Tensor:
    """−Δu on the unit square, u = 0 around it, times the square of the mesh's width."""
    p = torch.nn.functional.pad(u, (1, 1, 1, 1))
    return 4 * u - p[..., 2:, 1:-1] - p[..., :-2, 1:-1] - p[..., 1:-1, 2:] - p[..., 1:-1, :-2]


def bratu(u: Tensor, lam: Tensor) -> Tensor:
    """−Δu − λ eᵘ."""
    return laplacian(u) - lam * u.exp() / (u.shape[-1] + 1) ** 2


def rates(m: int = M) -> Tensor:
    return (5 + torch.sin(torch.arange(m * m, dtype=torch.float64)).view(m, m)).requires_grad_()


def by_hand(lam: Tensor) -> tuple[Tensor, Tensor]:
    """Bratu's solution, and the derivative of its sum in λ, by SciPy."""
    m = len(lam)
    line = sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(m, m))
    stiffness = sparse.kronsum(line, line)
    u, rate = np.zeros(m * m), lam.detach().numpy().reshape(-1) / (m + 1) ** 2
    for _ in range(10):
        factors = scipy.sparse.linalg.splu((stiffness - sparse.diags_array(rate * np.exp(u))).tocsc())
        u = u - factors.solve(stiffness @ u - rate * np.exp(u))
    w = factors.solve(np.ones(m * m), trans="T") * np.exp(u) / (m + 1) ** 2
    return torch.from_numpy(u).view(m, m), torch.from_numpy(w).view(m, m)


def start(m: int = M) -> Tensor:
    return torch.zeros(m, m, dtype=torch.float64)
