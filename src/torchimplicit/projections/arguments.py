"""What the projections ask of their arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import values_hidden
from torchimplicit.layout import describe

Number = float | Tensor


def check(v: Tensor, ndim: int = 1) -> None:
    """Raise TypeError or ValueError unless v is a real floating tensor with ``ndim`` dimensions or more."""
    if not isinstance(v, Tensor) or not v.is_floating_point():
        raise TypeError(f"what is projected must be a real floating tensor; got {describe(v)}.")
    if v.ndim < ndim:
        what = "vectors (..., n)" if ndim == 1 else "matrices (..., n, n)"
        raise ValueError(f"what is projected must be {what}; got a {describe(v)}.")


def like(value: Number, v: Tensor) -> Tensor:
    """A number or tensor as a tensor of v's dtype and device."""
    return value.to(v) if isinstance(value, Tensor) else v.new_tensor(float(value))


def possible(answer: Tensor, ok: Tensor, message: str) -> Tensor:
    """The answer (..., n), where ``ok`` (...) says that there is one. Else ValueError with the message is raised, or, inside a
    transform, where no value is seen, the answer is NaN."""
    if values_hidden():
        return torch.where(ok.unsqueeze(-1), answer, torch.nan)
    if not bool(ok.all()):
        bad = (~ok).flatten().nonzero().flatten()
        raise ValueError(f"{message} ({len(bad)} of {ok.numel()}, the first at flat index {int(bad[0])}).")
    return answer


def undefined(v: Tensor) -> Tensor:
    """(..., 1): NaN where v (..., n) is not finite, else 0, to be added to what was computed by comparisons, which hide a NaN."""
    v = v.detach()
    return (v - v).sum(-1, keepdim=True)
