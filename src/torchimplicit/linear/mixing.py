"""The mixture of past steps in which the linear model of the residual is smallest: what Anderson's methods share."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import tracing
from torchimplicit.linear import written_out


def mixture(dr: Tensor, dp: Tensor, r: Tensor, eps: float | None = None) -> Tensor:
    """γ ΔP, (..., n), with the γ that minimises ‖r − γ ΔR‖² + ε ‖ΔR‖² ‖γ‖² for m differences of residuals ΔR (..., m, n).

    From the normal equations, scaled to a unit diagonal; ε is the dtype's rounding unit where None is given. A difference that is
    zero or not finite plays no part, and a system whose equations have no finite solution gets zeros.
    """
    eps = torch.finfo(r.dtype).eps if eps is None else eps
    product = torch.bmm if dr.ndim == 3 else torch.matmul  # which costs as much again, around a small one
    gram = product(dr, dr.mH)
    square = gram.detach().diagonal(dim1=-2, dim2=-1).real
    usable = (square > 0) & (square < torch.inf)  # a scale that is only large has NaN for a derivative in `Unrolled`
    scale = torch.where(usable, square, torch.inf).rsqrt().unsqueeze(-1)
    gram = (gram.mT * scale * scale.mT).nan_to_num(0, 0, 0)
    gram.diagonal(dim1=-2, dim2=-1).add_(torch.where(usable, eps, 1))
    rhs = scale * product(r.unsqueeze(-2), dr.mH).mT  # as dr @ r it takes ten times longer
    solution = written_out.solve_definite(gram, rhs) if tracing() else torch.linalg.solve_ex(gram, rhs)[0]
    gamma = (scale * solution).nan_to_num(0, 0, 0)
    return product(gamma.mT, dp).squeeze(-2)
