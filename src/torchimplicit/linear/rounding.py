"""Whether nothing but rounding keeps x from solving A x = b: a judgement that no unit of equations or unknowns enters.

The norm of b − A x adds up equations. Where their sizes differ by 1e9, the rounding of the largest ones is more than the tolerance
allows, while every unknown is exact to many digits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.linear.factors import equilibrate

ROUNDINGS = 1e3  # factor by which a residual may exceed the rounding errors of a product with A
DIGITS = 1e-3  # largest error of x, relative to it with rows and columns scaled, with which it counts as a solution


def solved_to_rounding(A: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """Systems (B,) for which both is true: A (B, n, n), b and x (B, n).

    1. x solves a system exactly in which each number of A and b is changed by at most 2 (n + 1) eps of itself:
       |b − A x| ≤ 2 (n + 1) eps (|A| |x| + |b|). Rounding alone, of the products that make up the residual, is half of it.
    2. So small a change makes an error of x of at most a thousandth, by the bound |A⁻¹| (|A| |x| + |b|) eps.

    Source: Higham, Accuracy and Stability of Numerical Algorithms (2002), theorems 7.3 (Oettli and Prager) and 7.4.
    """
    n, eps = A.shape[-1], torch.finfo(A.dtype).eps
    F, d, c = equilibrate(A)
    x, b = (x / c).unsqueeze(-1), (d * b).unsqueeze(-1)
    terms = F.abs() @ x.abs() + b.abs()
    backward = ((b - F @ x).abs() <= 2 * (n + 1) * eps * terms).flatten(1).all(-1)
    inverse, _ = torch.linalg.inv_ex(F)
    error = eps * (inverse.abs() @ terms)
    return backward & (error.flatten(1).amax(-1) <= DIGITS * x.abs().flatten(1).amax(-1))


def solved_by_matrix(A: Tensor, b: Tensor, x: Tensor, residual_norm: Tensor) -> Tensor:
    """Systems (B,) for which the norm of b less a true product is what A x ≈ b makes of rounding errors.

    It is not where systems of a batch influence each other: then no A of each makes up the operator.
    """
    terms = (A.abs() @ x.abs().unsqueeze(-1)).squeeze(-1) + b.abs()
    rounding = (A.shape[-1] + 1) * torch.finfo(A.dtype).eps * torch.linalg.vector_norm(terms, dim=-1)
    return residual_norm <= ROUNDINGS * rounding
