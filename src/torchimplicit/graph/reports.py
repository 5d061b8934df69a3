"""What is said of failures when a graph runs: an operator that looks at the statuses, and hands on what it was given."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.status import OnFailure, report


def reported(
    z: Tensor,
    status: Tensor,
    error: Tensor,
    bound: Tensor,
    steps: Tensor,
    what: str,
    on_failure: OnFailure,
    what_of: str = "estimated error",
) -> Tensor:
    """z, once the user has been told of systems that failed."""
    if on_failure in ("ignore", "nan"):
        return z
    told: Tensor = _reported(z, status, error, bound, steps, what, on_failure, what_of)
    return told


@torch.library.custom_op("torchimplicit::reported", mutates_args=())
def _reported(
    z: Tensor, status: Tensor, error: Tensor, bound: Tensor, steps: Tensor, what: str, on_failure: str, what_of: str
) -> Tensor:
    report(what, status, error, bound, steps, on_failure, what_of=what_of)  # type: ignore[arg-type]
    return z.clone()


@_reported.register_fake
def _(
    z: Tensor, status: Tensor, error: Tensor, bound: Tensor, steps: Tensor, what: str, on_failure: str, what_of: str
) -> Tensor:
    return torch.empty_like(z)
