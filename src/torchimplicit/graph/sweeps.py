"""Many products in one sweep of ``torch.vmap`` in a graph: where torch's rules for it would not do, they are taken one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from torchimplicit.autograd.transforms import tracing
from torchimplicit.private.operators import CDIST_BACKWARD, DispatchMode


@contextmanager
def sweeping() -> Iterator[None]:
    """A context in which a sweep for a graph raises RuntimeError if the graph would then serve one batch size alone, as torch's rules
    for the derivatives of slices, indices, convolutions or sorts have it, or be wrong. (In plain code wrong products are found out.)
    """
    if not tracing():
        yield
        return
    from torchimplicit.private.dynamo import sizes_refused  # Dynamo takes long to import

    quiet = torch.autograd.set_detect_anomaly(False)  # torch.compile's, which would tell of what is caught
    with quiet, sizes_refused(), _WithoutWrongRules():
        yield


class _WithoutWrongRules(DispatchMode):
    """Without the derivative of ``torch.cdist``, whose rule mixes up the vectors of a batch."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is CDIST_BACKWARD:
            raise RuntimeError("torch's rule for vmap of the derivative of cdist is wrong")
        return func(*args, **(kwargs or {}))
