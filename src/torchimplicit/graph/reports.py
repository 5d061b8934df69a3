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
    told: Tensor = torch.ops.torchimplicit.reported(z, status, error, bound, steps, what, on_failure, what_of)
    return told


# Not by torch.library.custom_op, whose operators take longer to call than this one to look at small statuses.
_LIBRARY = torch.library.Library("torchimplicit", "FRAGMENT")
_LIBRARY.define(
    "reported(Tensor z, Tensor status, Tensor error, Tensor bound, Tensor steps, str what, str on_failure, str what_of) -> Tensor"
)


def _reported(
    z: Tensor, status: Tensor, error: Tensor, bound: Tensor, steps: Tensor, what: str, on_failure: str, what_of: str
) -> Tensor:
    report(what, status, error, bound, steps, on_failure, what_of=what_of)  # type: ignore[arg-type]
    return z.clone()


_LIBRARY.impl("reported", _reported, "CompositeExplicitAutograd")


@torch.library.register_fake("torchimplicit::reported")
def _(
    z: Tensor, status: Tensor, error: Tensor, bound: Tensor, steps: Tensor, what: str, on_failure: str, what_of: str
) -> Tensor:
    return torch.empty_like(z)
