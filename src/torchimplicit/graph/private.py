"""What of PyTorch's own inside a solve in a graph needs: an operator around the user's function, and the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

try:
    from torch._higher_order_ops.base_hop import BaseHOP
    from torch._higher_order_ops.while_loop import while_loop_op

    AVAILABLE = True
except ImportError:  # an older torch
    AVAILABLE = False


def while_loop(
    condition: Callable[..., Tensor], body: Callable[..., Any], carried: Sequence[Tensor], others: Sequence[Tensor]
) -> Sequence[Tensor]:
    """``torch.while_loop`` in a graph that is being made, with the tensors that it uses beside those it carries."""
    results: Sequence[Tensor] = while_loop_op(condition, body, tuple(carried), tuple(others))
    return results
