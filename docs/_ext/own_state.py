"""Examples share a process: none finds what another has set."""

from __future__ import annotations

from typing import Any

import torch


def fresh(gallery_conf: Any, file: str) -> None:
    """PyTorch as it is after its import."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    torch.set_grad_enabled(True)
