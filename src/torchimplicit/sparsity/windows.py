"""The windows of a convolution, as places: which entries of its input each entry of its output sees."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.sparsity.dependencies import MOST, Unknown, slots_of


class Convolution(NamedTuple):
    """A convolution of an input of the given shape (B, C, *space), which is not transposed."""

    shape: torch.Size
    weight: Tensor
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    def forward_slots(self) -> Tensor:
        """(k, number of outputs): the places in the input, plus 1; 0 for none."""
        used = self._windows().flatten(1)
        return used[(used != 0).any(1)]

    def backward_slots(self) -> Tensor:
        """(k, number of inputs): the places in the output that each entry of the input is seen from, plus 1; 0 for none."""
        windows = self._windows().flatten(1)
        slot, place = (windows != 0).nonzero().unbind(1)
        return slots_of(windows[slot, place] - 1, place, self.shape.numel())

    def _windows(self) -> Tensor:
        """(C / groups · window, B, outputs, *space): places in the input plus 1, 0 where the weight is 0 or the window hangs over."""
        shape, weight, stride, padding, dilation, groups = self
        space = shape[2:]
        outputs, per_group, *kernel = weight.shape
        if int(weight.flatten(1).count_nonzero(1).max()) > MOST:
            raise Unknown("a convolution that sees too many entries")
        places = torch.arange(1, shape.numel() + 1, device=weight.device).view(shape)
        padded = torch.nn.functional.pad(places, [p for size in reversed(list(padding)) for p in (size, size)])
        found = []
        for channel in range(per_group):
            of_group = padded[:, channel::per_group].repeat_interleave(outputs // groups, 1)  # (B, outputs, *space)
            used = (weight[:, channel] != 0).flatten(1)
            for number, at in enumerate(product(*(range(k) for k in kernel))):
                mask = used[:, number]
                if not bool(mask.any()):
                    continue
                view = of_group
                for d, (offset, k) in enumerate(zip(at, kernel, strict=True)):
                    length = (space[d] + 2 * padding[d] - dilation[d] * (k - 1) - 1) // stride[d] + 1
                    start = offset * dilation[d]
                    view = view.narrow(2 + d, start, (length - 1) * stride[d] + 1)
                    view = view[(slice(None),) * (2 + d) + (slice(None, None, stride[d]),)]
                found.append(view * mask.view(-1, *(1,) * len(space)))
        if not found:
            raise Unknown("a convolution without weights")
        return torch.stack(found)
