"""What the methods that go downhill share: what they may be asked for, and when a value counts as lower."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.solvers.equations import Equations


def check_minimised(equations: Equations, method: str) -> None:
    """Raise TypeError unless an objective is minimised, and has no bounds."""
    if equations.kind.bounded:
        raise TypeError(
            f"{method} does not know of bounds. Use 'projected_newton', the default, or interop.SciPy('L-BFGS-B')."
        )
    check_objective(equations, method)


def check_objective(equations: Equations, method: str) -> None:
    """Raise TypeError unless an objective is minimised."""
    if not equations.kind.minimised:
        raise TypeError(
            f"{method} goes downhill on an objective, and a {equations.kind.name} has none. Use minimize or least_squares, or a "
            f"solver for equations, such as Newton or Broyden."
        )


def dot(x: Tensor, y: Tensor) -> Tensor:
    """The inner products of rows: (B, n), (B, n) -> (B,)."""
    return torch.linalg.vecdot(x, y)


def curved(s: Tensor, y: Tensor) -> Tensor:
    """Whether the gradient grows along s by more than rounding, (B,): only then does a positive definite H fit the pair."""
    s, y = s.detach(), y.detach()
    size = torch.linalg.vector_norm(s, dim=-1) * torch.linalg.vector_norm(y, dim=-1)
    return (dot(s, y) > torch.finfo(s.dtype).eps * size) & size.isfinite()
