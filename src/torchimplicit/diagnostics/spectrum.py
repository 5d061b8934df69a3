"""How well posed a problem is at a point: spectral radius and extreme singular values of Jacobians, batch by batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.linear import GMRES, LinearOperator

DENSE_UNKNOWNS = 512
"""up to here the matrix is formed, and the answer exact"""
DENSE_ENTRIES = 2**24
KRYLOV_STEPS = 60
INVERSE_STEPS = 4


class Spectrum(NamedTuple):
    """Per system, (B,)."""

    value: Tensor
    exact: bool
    """from the dense matrix; otherwise an estimate from products"""


def affordable(A: LinearOperator) -> bool:
    """Is the dense matrix small enough to be formed?"""
    n = A.shape[-1]
    return n <= DENSE_UNKNOWNS and A.batch_shape.numel() * n * n <= DENSE_ENTRIES


def spectral_radius(A: LinearOperator) -> Spectrum:
    """The largest |eigenvalue| of each matrix; for large ones the largest Ritz value that Arnoldi's method finds.

    Arnoldi's method and not power iteration: the dominant eigenvalues of a layer's Jacobian mostly are a complex
    pair, on which power iteration does not settle. Source: Saad, Numerical Methods for Large Eigenvalue Problems, 6.2.
    """
    if A.shape[-1] == 0:
        return Spectrum(torch.zeros(A.batch_shape, dtype=A.dtype, device=A.device), True)
    if affordable(A):
        return Spectrum(torch.linalg.eigvals(A.to_dense()).abs().amax(-1), True)
    return Spectrum(torch.linalg.eigvals(_arnoldi(A)).abs().amax(-1), False)


def _arnoldi(A: LinearOperator) -> Tensor:
    """The Hessenberg matrices (*batch_shape, m, m) of A on its Krylov space from a random start."""
    n = A.shape[-1]
    m = min(KRYLOV_STEPS, n)
    V = torch.zeros(*A.batch_shape, m + 1, n, dtype=A.dtype, device=A.device)
    H = torch.zeros(*A.batch_shape, m + 1, m, dtype=A.dtype, device=A.device)
    V[..., 0, :] = torch.nn.functional.normalize(_random(A), dim=-1)
    for k in range(m):
        w = A.matvec(V[..., k, :])
        for _ in range(2):  # once is not enough in floating point
            h = (V[..., : k + 1, :] @ w.unsqueeze(-1)).squeeze(-1)
            w = w - (h.unsqueeze(-2) @ V[..., : k + 1, :]).squeeze(-2)
            H[..., : k + 1, k] += h
        norm = torch.linalg.vector_norm(w, dim=-1)
        H[..., k + 1, k] = norm
        # Once the space is exhausted the remaining rows stay zero, and so do their Ritz values.
        alive = norm > torch.finfo(A.dtype).eps * torch.linalg.vector_norm(H[..., : k + 1, k], dim=-1)
        V[..., k + 1, :] = torch.where(alive.unsqueeze(-1), w / norm.clamp_min(torch.finfo(A.dtype).tiny)[..., None], 0)
    return H[..., :m, :]


def largest_singular_value(A: LinearOperator) -> Spectrum:
    """‖A‖₂; for large matrices by power iteration on AᵀA, a lower bound."""
    if affordable(A):
        return Spectrum(torch.linalg.matrix_norm(A.to_dense(), 2), True)
    x = torch.nn.functional.normalize(_random(A), dim=-1)
    for _ in range(2 * INVERSE_STEPS):
        x = torch.nn.functional.normalize(A.rmatvec(A.matvec(x)), dim=-1)
    return Spectrum(torch.linalg.vector_norm(A.matvec(x), dim=-1), False)


def smallest_singular_value(A: LinearOperator) -> Spectrum:
    """1 / ‖A⁻¹‖₂; for large matrices by inverse iteration on AᵀA with GMRES, an upper bound.

    The bound is |A x| for a unit x, so it holds however well the inner solves went.
    """
    if affordable(A):
        return Spectrum(torch.linalg.svdvals(A.to_dense())[..., -1], True)
    state = GMRES().factorize(A)
    x = torch.nn.functional.normalize(_random(A), dim=-1)
    best = torch.linalg.vector_norm(A.matvec(x), dim=-1)
    for _ in range(INVERSE_STEPS):
        x = torch.nn.functional.normalize(state.solve(state.solve(x, adjoint=True)), dim=-1)
        best = torch.minimum(best, torch.linalg.vector_norm(A.matvec(x), dim=-1))
    return Spectrum(best, False)


def _random(A: LinearOperator) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*A.batch_shape, A.shape[-1], generator=generator, dtype=A.dtype).to(A.device)
