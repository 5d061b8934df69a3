"""Memory of one run: the peak that the process reaches, and what a forward pass keeps for its backward."""

from __future__ import annotations

import ctypes
import gc
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

# glibc keeps freed blocks for itself, and what it keeps would hide the next run's demand: in the process that
# measures memory every larger block comes from the system and goes back to it.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def peak_bytes(run: Callable[[], Any]) -> int | None:
    """How far one run lifts the resident memory above where it was. Only Linux tells; elsewhere None."""
    if platform.system() != "Linux":
        return None
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to the present size
    except OSError:
        return None
    before = _status("VmRSS")
    result = run()
    peak = _status("VmHWM")
    del result
    return max(peak - before, 0)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def kept_bytes(record: Callable[[], Any], inputs: tuple[Any, ...]) -> int:
    """Storage that lives between a torch forward pass and its backward, besides the inputs and the result.

    Every storage that any operation returns is followed by a weak reference, so what hides in closures, recordings and
    factorisations counts as much as what autograd saves.
    """
    from torch import strided
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    storages: list[tuple[Any, int]] = []
    seen: set[int] = set()

    class Follow(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            for leaf in tree_leaves(result):
                if (
                    hasattr(leaf, "untyped_storage") and leaf.layout == strided
                ):  # the parts of sparse ones come by themselves
                    storage = leaf.untyped_storage()
                    reference = StorageWeakRef(storage)
                    # A weak reference keeps the address from being used again, so the address names the storage.
                    if reference.cdata not in seen:
                        seen.add(reference.cdata)
                        storages.append((reference, storage.nbytes()))
            return result

    with Follow():
        result = record()
    gc.collect()
    own = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in (*inputs, result)}
    return sum(size for reference, size in storages if not reference.expired() and reference.cdata not in own)
