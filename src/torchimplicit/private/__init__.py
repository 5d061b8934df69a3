"""Every name of PyTorch's own that its documentation does not promise, and what it buys. tests/stack/test_private.py tries each."""

import sys

# Torch's own layers are made of these two, which have no public names yet (optree would be one more dependency).
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


def dynamo_is_loaded() -> bool:
    """Whether anybody compiles: torch imports Dynamo then, which takes longer than all else of it."""
    return "torch._dynamo" in sys.modules


__all__ = ["TorchDispatchMode", "dynamo_is_loaded", "pytree"]
