"""When a solve stops: tolerances and the norm. The one place for both."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.linear.factors import inverse_power_of_two
from torchimplicit.status import (
    ConvergenceError,
    ConvergenceWarning,
    OnFailure,
    Status,
    all_converged,
    check_policy,
    linear_status,
    report,
    tell,
    users_frame,
)
from torchimplicit.transforms import inside_functorch

__all__ = [
    "ConvergenceError",
    "ConvergenceWarning",
    "OnFailure",
    "Status",
    "Tolerance",
    "all_converged",
    "check_policy",
    "check_steps",
    "linear_status",
    "measured",
    "report",
    "rms",
    "rounding",
    "tell",
    "users_frame",
]


def rms(v: Tensor, unit: Tensor | None = None) -> Tensor:
    """Root-mean-square norm of each row: (B, n) -> (B,). The norm in which convergence is decided.

    ``unit`` (B, 1) is what squares are taken in where those of v itself would vanish or overflow (:func:`measured`).
    """
    if unit is not None:
        return rms(v / unit) * unit.squeeze(-1)
    if v.shape[-1] == 0:
        return v.new_zeros(v.shape[:-1])
    if v.shape[-1] == 1:
        return v.abs().squeeze(-1)
    return torch.linalg.vector_norm(v, dim=-1) / v.shape[-1] ** 0.5


def measured(v: Tensor) -> tuple[Tensor, Tensor | None]:
    """The norm of each row (B,), and its unit (B, 1) for that of smaller vectors: the power of two next to the largest number.

    The unit is None where every norm is so near to ordinary that all smaller ones worth telling from 0 are ordinary too.
    """
    norm, about = rms(v), torch.finfo(v.dtype)
    if v.shape[-1] <= 1 or not (
        inside_functorch() or not torch.equal(norm.clamp(about.tiny**0.25, about.max**0.25), norm)
    ):
        return norm, None
    unit = 1 / inverse_power_of_two(v.abs().amax(-1, keepdim=True))
    return rms(v, unit), unit


def rounding(value: Tensor) -> Tensor:
    """Changes of an objective that rounding may hide, (B,): eps^(2/3) of its size.

    Below it, how much lower a point lies is read off the slopes on the way there, which are exact where differences of values
    are not: a value near a minimum tells it to √eps only.
    Source: Hager and Zhang, A new conjugate gradient method with guaranteed descent and an efficient line search, SIAM J. Optim.
    16 (2005), section 4 ("approximate Wolfe conditions").
    """
    return torch.finfo(value.dtype).eps ** (2 / 3) * value.abs()


@dataclass(frozen=True)
class Tolerance:
    """residual ≤ atol + rtol·scale, where the scale is the problem's (rms(z), rms(g(z0)) or ‖b‖; 1 for the imbalance of a fit).

    floor : below it, a residual that has stopped to fall is rounding error, and the system has converged.
    """

    rtol: float
    atol: float
    floor: float

    @staticmethod
    def of(rtol: float | None, atol: float | None, dtype: torch.dtype) -> Tolerance:
        """Defaults follow the dtype: rtol = √eps, atol = eps, and a floor of eps^(3/4) unless atol is given; where g itself
        computes in half precision, whose √eps would be satisfied by anything, rtol = 4 eps.
        """
        eps = torch.finfo(dtype).eps
        for name, value in (("rtol", rtol), ("atol", atol)):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and 0 <= value < math.inf):
                raise ValueError(f"{name} must be a finite number >= 0 (or None for the default); got {value!r}.")
        half = torch.finfo(dtype).bits == 16
        default_rtol, default_floor = (4 * eps, eps) if half else (eps**0.5, eps**0.75)
        return Tolerance(
            default_rtol if rtol is None else float(rtol),
            eps if atol is None else float(atol),
            default_floor if atol is None else 0.0,
        )

    def bound(self, scale: Tensor) -> Tensor:
        """The largest residual that counts as converged."""
        return self.atol + self.rtol * scale if self.rtol else scale.new_tensor(self.atol).expand(scale.shape)


def check_steps(max_steps: int | None) -> None:
    """Raise ValueError unless ``max_steps`` is None or a number of steps."""
    if max_steps is not None and (isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 0):
        raise ValueError(f"max_steps must be an integer >= 0 (or None for the solver's default); got {max_steps!r}.")
