"""Systems that ended in NaN or Inf must not reach the others: 0 · NaN is NaN in every tensor that they share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import occurs
from torchimplicit.condition import Condition
from torchimplicit.status import Status, unanswered


def replace_failed(z: Tensor, status: Tensor) -> Tensor:
    """z with the rows that have no answer replaced by a row that converged, so that 0 · NaN poisons no shared tensor."""
    failed = unanswered(status).unsqueeze(-1)
    if z.shape[0] == 0 or not occurs(failed.squeeze(-1)):
        return z
    good = (status == Status.CONVERGED).to(torch.int64).argmax()
    stand_in = z.index_select(0, good.reshape(1)).nan_to_num(nan=1.0, posinf=1.0, neginf=1.0)
    return torch.where(failed, stand_in, z)


def replace_what_failed(
    condition: Condition, z: Tensor, status: Tensor, tensors: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """g's tensors with 1 for every entry that is not finite, where a system failed and no other system notices.

    Their own systems have u = 0, so any finite number does. That the others do not notice is verified: their conditions must be
    the same to the last bit. Otherwise the tensors are left as they are, and NaN shows itself in the gradient.
    """
    failed = unanswered(status)
    if not occurs(failed):
        return tuple(tensors)
    finite = [torch.where(t.isfinite(), t, 1) if t.is_floating_point() or t.is_complex() else t for t in tensors]
    with torch.no_grad():
        before, after = condition(z, *tensors), condition(z, *finite)
    unnoticed = torch.equal(before[~failed], after[~failed]) and bool(after.isfinite().all())
    return tuple(finite if unnoticed else tensors)
