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


def like(value: Number, v: Tensor, name: str, shape: torch.Size | None = None) -> Tensor:
    """A number or tensor as a tensor of v's dtype and device, and of a shape; raises TypeError or ValueError where it is none."""
    try:
        tensor = value.to(v) if isinstance(value, Tensor) else v.new_tensor(float(value))
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number or a tensor; got {describe(value)}.") from None
    if shape is None:
        return tensor
    try:
        return tensor.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"{name} must be a number, or a tensor that broadcasts to shape {tuple(shape)}; got a {describe(tensor)}, beside a "
            f"{describe(v)}."
        ) from None


def common_shape(name: str, vectors: dict[str, Tensor], numbers: dict[str, Tensor]) -> torch.Size:
    """What the shapes of vectors (..., n), and of numbers (...), one for each, broadcast to; raises ValueError where they do not."""
    shapes = [t.shape for t in vectors.values()] + [(*t.shape, 1) for t in numbers.values()]
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        given = ", ".join(f"{key} {tuple(t.shape)}" for key, t in {**vectors, **numbers}.items())
        raise ValueError(f"{name}: shapes of vectors (..., n) and numbers (...) do not broadcast: {given}.") from None


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
