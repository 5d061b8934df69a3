"""Whether a function has drawn random numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def random_state(device: torch.device) -> Tensor:
    """The states of the generators that a function on this device may draw from; other ones, if it did."""
    host = torch.get_rng_state()
    if device.type == "cpu":
        return host
    return torch.cat([host, torch.get_device_module(device).get_rng_state(device)])
