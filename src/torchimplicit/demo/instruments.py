"""How the demo measures: bytes kept for the backward pass, time, and gradients compared with a reference."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from torchimplicit.private import TorchDispatchMode, pytree
from torchimplicit.private.autograd import storage


@contextmanager
def quiet_machine() -> Iterator[None]:
    """One thread, and no subnormal numbers, for the time of a measurement.

    The tensors here are too small to share out, and threads that wait for each other on a busy machine cost more than
    the work. Cotangents that vanish on the way back through many steps end as subnormal numbers, with which a CPU is
    twenty times slower: true of the explicit way, but not what is to be measured.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)


class LiveStorage(TorchDispatchMode):
    """Counts the storage made while it is on and still held by somebody when asked.

    After a forward pass that is what the backward pass keeps alive, wherever it is hidden: saved tensors, closures,
    factorisations. (Hooks on saved tensors would see the first of these only.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                kept = leaf.untyped_storage()
                self.seen[storage(leaf)] = (StorageWeakRef(kept), kept.nbytes())  # an address may be used again
        return out

    def bytes(self) -> int:
        return sum(size for reference, size in self.seen.values() if not reference.expired())


def relative_error(gradient: Tensor, reference: Tensor) -> float:
    return ((gradient.double() - reference).norm() / reference.norm()).item()


def flat(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([gradient.detach().flatten() for gradient in gradients])


@dataclass(frozen=True)
class Measured:
    """One forward and backward pass."""

    steps: int
    """asked for in the forward pass"""
    error: float
    """of the gradient, relative to the reference"""
    norm: float
    """of the gradient"""
    forward_seconds: float
    backward_seconds: float
    saved_bytes: int
    """alive between forward and backward, beyond what was there before"""


def measure(
    steps: int, loss: Callable[[], Tensor], leaves: Sequence[Tensor], reference: Tensor, repeats: int = 3
) -> Measured:
    """Evaluate ``loss()`` and its gradient in ``leaves`` a few times; times are medians."""
    forward, backward = [], []
    gradient = torch.empty(0)
    for _ in range(repeats):
        began = time.perf_counter()
        value = loss()
        turned = time.perf_counter()
        gradient = flat(torch.autograd.grad(value, leaves))
        forward.append(turned - began)
        backward.append(time.perf_counter() - turned)
    with LiveStorage() as live:  # slows everything down, so not while the clock runs
        value = loss()
    saved = live.bytes()
    del value
    return Measured(
        steps=steps,
        error=relative_error(gradient, reference),
        norm=gradient.double().norm().item(),
        forward_seconds=statistics.median(forward),
        backward_seconds=statistics.median(backward),
        saved_bytes=saved,
    )


def finite_difference(loss: Callable[[], Tensor], leaves: Sequence[Tensor], gradient: Tensor, h: float) -> float:
    """Relative difference of <gradient, d> and the central difference of ``loss()`` along d = gradient / |gradient|.

    The leaves are moved in place and put back.
    """
    direction = gradient / gradient.norm()
    pieces = direction.split([leaf.numel() for leaf in leaves])

    def moved(by: float) -> float:
        with torch.no_grad():
            kept = [leaf.clone() for leaf in leaves]
            for leaf, piece in zip(leaves, pieces):
                leaf.add_(piece.view_as(leaf), alpha=by)
            value = loss().item()
            for leaf, old in zip(leaves, kept):
                leaf.copy_(old)
        return value

    slope = (moved(h) - moved(-h)) / (2 * h)
    return abs(slope - (gradient @ direction).item()) / abs(slope)
