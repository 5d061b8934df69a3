"""Robust losses: residuals are replaced by numbers w with w² = ρ(r²), so that Σw²/2 is the robust sum Σρ(r²)/2 exactly.

A method for sums of squares then needs to know nothing of ρ, and the gradient, JᵀJ and the full Hessian are those of the loss.
Each w is an odd, increasing function of r, with slope 1 at 0.
Source of the losses: Triggs et al., Bundle adjustment: a modern synthesis (2000), section 3; named as in SciPy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchimplicit.bounds import Output
from torchimplicit.layout import Layout, describe
from torchimplicit.parameters import check_positive

SERIES = 0.01  # below it, log(1 + s)/s is summed as a series, whose derivatives exist at 0


def linear(r: Tensor) -> Tensor:
    """ρ(s) = s."""
    return r


def huber(r: Tensor) -> Tensor:
    """ρ(s) = s for s ≤ 1, 2√s − 1 beyond."""
    far, negative = r.abs() > 1, r < 0
    # Not by abs, the second derivative of which makes the batch size a constant of a graph.
    root = (2 * torch.where(far, torch.where(negative, -r, r), 1) - 1).sqrt()
    return torch.where(far, torch.where(negative, -root, root), r)


def soft_l1(r: Tensor) -> Tensor:
    """ρ(s) = 2(√(1 + s) − 1)."""
    return r * (2 / (1 + (1 + r.square()).sqrt())).sqrt()


def cauchy(r: Tensor) -> Tensor:
    """ρ(s) = log(1 + s)."""
    s = r.square()
    near = s < SERIES
    series = torch.zeros_like(s)
    for k in range(9, 0, -1):
        series = 1 / k - torch.where(near, s, 0) * series
    far = torch.where(near, 1, s)
    return r * torch.where(near, series, torch.log1p(far) / far).sqrt()


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": linear,
    "huber": huber,
    "soft_l1": soft_l1,
    "cauchy": cauchy,
}


def check_loss(loss: Any, f_scale: Any) -> None:
    """Raise ValueError unless ``loss`` is one of the names and ``f_scale`` a positive number; TypeError for a tensor."""
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(map(repr, LOSSES))}; got {loss!r}.")
    if isinstance(f_scale, Tensor):
        raise TypeError(
            f"f_scale is one number, without a gradient; got a {describe(f_scale)}. For one of each observation, or a gradient in it, "
            f"divide the residuals by it and leave f_scale=1."
        )
    check_positive("f_scale", f_scale)


def with_loss(output: Output, loss: str, f_scale: float) -> Output:
    """What flattens the user's residuals, followed by C w(r / C), for a loss that sets in at C = ``f_scale``."""
    return output if loss == "linear" else _WithLoss(output, loss, f_scale)


@dataclass(frozen=True)
class _WithLoss:
    output: Output
    loss: str
    f_scale: float

    def __call__(self, layout: Layout, what: str) -> Callable[[Any], Tensor]:
        flatten, w = self.output(layout, what), LOSSES[self.loss]
        return lambda out: self.f_scale * w(flatten(out) / self.f_scale)
