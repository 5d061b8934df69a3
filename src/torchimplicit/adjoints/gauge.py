"""Derivatives beside a singular Jacobian: a gauge, a direction in which z* may move freely, does no harm where nobody asks about it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchimplicit.linear.factors import equilibrate
from torchimplicit.linear.vectors import unpatterned

NULL = 1e3  # in units of eps: a singular value that is smaller, beside the largest one, is zero
UNSEEN = 1e-2  # of what another vector gives: less is nothing, for z* is known to its tolerance only


def solve_singular(A: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, y, other, consistent): a solution of A x = b for singular A (B, n, n), a generic null vector y of A, any other vector as
    large, and whether there is a solution, (B,); two of them differ by null vectors."""
    F, d, c = equilibrate(A.nan_to_num(posinf=0.0, neginf=0.0))
    U, S, Vh = torch.linalg.svd(F)
    eps = torch.finfo(A.dtype).eps
    kept = S > NULL * eps * S[..., :1]
    parts = (U.mT @ (d * b).unsqueeze(-1)).squeeze(-1)
    terms = (U.mT.abs() @ (d * b).abs().unsqueeze(-1)).squeeze(-1)
    # whatever the units: what cancels is a sum of such terms, and singular vectors are known to rounding
    nothing = parts.abs() <= (eps**0.5 * terms).maximum(NULL * eps * terms.amax(-1, keepdim=True))
    consistent = (kept | nothing).all(-1)
    solution = torch.where(kept, parts / S, 0)
    null = torch.where(kept, 0, unpatterned(b))
    x, y = ((Vh.mT @ part.unsqueeze(-1)).squeeze(-1) for part in (solution, null))
    other = unpatterned(b) * y.abs().amax(-1, keepdim=True)
    return c * x, c * y, c * other, consistent & ~kept.all(-1) & A.isfinite().flatten(1).all(1)


def unseen(of_null: Sequence[Tensor | None], of_other: Sequence[Tensor | None]) -> bool:
    """Whether yᵀ∂g/∂x vanishes for every tensor x, beside that of another vector: then no null vector y changes uᵀ∂g/∂x."""
    pairs = zip(of_null, of_other, strict=True)
    return all(
        bool(a.abs().max() <= UNSEEN * b.abs().max()) for a, b in pairs if a is not None and b is not None and a.numel()
    )
