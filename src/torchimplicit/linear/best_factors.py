"""The choice among the libraries that factorise sparse matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.linear.direct import Direct, Divided
from torchimplicit.linear.pattern import Pattern
from torchimplicit.linear.sparse_factors import installed
from torchimplicit.linear.suitesparse import CHOLMOD
from torchimplicit.linear.superlu import SuperLU

SYMMETRIC = 64  # in units of eps, beside the diagonal: entries that differ by no more are the same


def best_factors(values: Tensor, pattern: Pattern, sign: int | None = None) -> Direct:
    """CHOLMOD's of matrices that are Hermitian and definite, where it is installed; else SuperLU's. ``sign``: what is known of that, 1
    or −1 for positive or negative ones, 0 for others."""
    here = installed(CHOLMOD.extra[0])
    if sign is None or not here:
        sign = definite(values, pattern) if here else 0
    if sign:
        cholesky = CHOLMOD(values if sign > 0 else -values, pattern)
        if cholesky.complete:
            return cholesky if sign > 0 else Divided(cholesky, torch.full(values.shape[:-1], -1.0, dtype=values.dtype))
    return SuperLU(values, pattern)


def definite(values: Tensor, pattern: Pattern) -> int:
    """1 or −1 where all the matrices are Hermitian, but for rounding, with diagonals of that sign; else 0."""
    if not (len(pattern.rows) and values.numel() and pattern.symmetric):
        return 0
    values = values.detach()
    on = (pattern.rows == pattern.columns).nonzero().flatten()
    diagonal = values[..., on].real
    sign = int(diagonal.flatten()[:1].sign().sum())
    if not sign or len(on) != pattern.n or not bool((sign * diagonal > 0).all()):
        return 0
    size = diagonal.abs().sqrt()
    off = (values - pattern.transposed_values(values)).abs()
    allowed = size.index_select(-1, pattern.rows) * size.index_select(-1, pattern.columns)
    return sign if bool((off <= SYMMETRIC * torch.finfo(values.dtype).eps * allowed).all()) else 0
