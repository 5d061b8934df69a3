"""Whether a function transform (`torch.vmap`, `torch.func.grad`, ...) is running, and what that forbids.

Inside a transform a tensor's values may not steer Python's control flow: under `vmap` one Python boolean would have to
answer for every sample at once. Every such decision of this package goes through `finished`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def inside_transform() -> bool:
    """True while at least one functorch level is active."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def finished(mask: Tensor) -> bool:
    """Whether every entry of `mask` is True, so that a loop may stop or a fallback be left out.

    Always False inside a transform: there the loop runs to its limit, with finished systems masked.
    """
    return not inside_transform() and bool(mask.all())
