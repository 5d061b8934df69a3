"""The pattern of a Jacobian, from one evaluation of a function in which every operation tells what its result depends on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchimplicit.linear.pattern import Pattern
from torchimplicit.private.operators import DispatchMode, written
from torchimplicit.sparsity.construction import of_places, of_rows
from torchimplicit.sparsity.dependencies import Layers, Unknown
from torchimplicit.sparsity.rules import Call


class NoPattern(Exception):
    """No pattern was found; the message says why."""


def detect(f: Callable[[Tensor], Tensor], z: Tensor) -> Pattern:
    """The places where ∂f/∂z, for z (B, n) -> (B, m), may have entries in any of the B systems: perhaps more, never fewer, as far as
    what PyTorch runs tells. (A custom autograd Function whose derivative is not that of its forward is beyond it.)

    Raises NoPattern where f uses an operation that is not known here, mixes systems, or its rows depend on very many unknowns.
    """
    if z.is_complex():
        raise NoPattern("complex unknowns")
    z = z.detach().clone()
    names = torch.arange(1, z.numel() + 1, dtype=torch.int32, device=z.device)
    with torch.no_grad(), _Following(z.numel()) as following:
        following.note(z, [names.view(z.shape)])
        value = f(z)
    layers = [layer.detach() for layer in following.layers(value.detach())]
    following.check(layers)
    return _pattern(layers, value.shape, z.shape)


def _pattern(layers: Layers, out: torch.Size, shape: torch.Size) -> Pattern:
    """Of all systems together, from what each entry of the value (B, m) depends on."""
    (batch, m), n = out, shape[-1]
    if not layers:
        return of_places(torch.zeros(0), torch.zeros(0), m, n)
    # (B, m, k), counted from 1 through all systems; in memory layer by layer
    columns = torch.stack([layer.reshape(batch, m) for layer in layers]).movedim(0, -1)
    if batch > 1:
        system = torch.arange(batch, device=columns.device, dtype=columns.dtype).view(-1, 1, 1)
        none = columns == 0
        columns = columns - system * n
        if not bool((none | ((columns > 0) & (columns <= n))).all()):
            raise NoPattern("the systems of the batch depend on each other")
        columns = columns.masked_fill(none, 0)
        same = torch.equal(columns, columns[:1].expand_as(columns))
        columns = columns[:1] if same else columns.movedim(0, 1).reshape(1, m, -1)
    return of_rows(columns[0].cpu(), n)


class _Storage:
    """What the entries of a storage depend on: ``layers``, of one number for each entry."""

    def __init__(self, tensor: Tensor, layers: Layers) -> None:
        self.kept = tensor  # its storage, and with it the address, is nobody else's as long as it lives
        self.itemsize = tensor.element_size()
        self.layers = layers


class _Following(DispatchMode):
    """Notes for every storage that is written what its entries depend on. Views share it, so that they need no rule, and what is
    written through one is seen through all.

    An entry of which nobody knows what it depends on depends on one unknown more, beyond the ``size`` that there are, one for each
    reason: what has no part in the result does no harm, such as the value of a sum over all beside its derivative.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.storages: dict[int, _Storage] = {}
        self.size = size
        self.reasons: list[str] = []

    def layers(self, tensor: Tensor) -> Layers:
        """What the entries of a tensor depend on; nothing: []."""
        storage = self.storages.get(_address(tensor)) if tensor.layout == torch.strided else None
        if storage is None or not storage.layers:
            return []
        if storage.itemsize != tensor.element_size():
            return self._not_known("a view of another dtype", tensor)
        return [_part(layer, tensor) for layer in storage.layers]

    def check(self, layers: Layers) -> None:
        """Raises NoPattern, with the reason, where some entry depends on what nobody knows."""
        for layer in layers:
            if layer.numel() and (beyond := int(layer.max()) - self.size) > 0:
                raise NoPattern(self.reasons[beyond - 1])

    def _not_known(self, why: str, tensor: Tensor) -> Layers:
        if why not in self.reasons:
            self.reasons.append(why)
        number = self.size + 1 + self.reasons.index(why)
        return [torch.tensor(number, dtype=torch.int32, device=tensor.device).expand(tensor.shape)]

    def note(self, tensor: Tensor, layers: Layers) -> None:
        """The entries of a tensor, and of all that share them, depend on these."""
        if tensor.layout != torch.strided:
            raise NoPattern("a sparse tensor depends on the unknowns")
        storage = self.storages.get(_address(tensor))
        if storage is None:
            if not layers:
                return
            storage = self.storages[_address(tensor)] = _Storage(tensor, [])
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        whole = tensor.numel() == size and tensor.is_contiguous() and tensor.storage_offset() == 0
        if whole:  # the common case: nothing of what was there is left
            storage.layers = [layer.reshape(-1).contiguous() for layer in layers]
            return
        like = layers[0] if layers else storage.layers[0]
        while len(storage.layers) < len(layers):
            storage.layers.append(like.new_zeros(size))
        for i, old in enumerate(storage.layers):
            new = old.clone()  # it may be a layer of another tensor too
            part = _part(new, tensor)
            part.copy_(layers[i]) if i < len(layers) else part.zero_()
            storage.layers[i] = new

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = {id(leaf): self.layers(leaf) for leaf in _tensors((args, kwargs))}
        out = func(*args, **kwargs)
        if not any(known.values()):
            return out
        results = [leaf for leaf in _tensors(out) if leaf.is_floating_point() or leaf.is_complex()]
        fresh = written(func, args, kwargs)
        fresh += [leaf for leaf in results if _address(leaf) not in self.storages and not _among(leaf, fresh)]
        if not fresh:  # a view, or nothing that has a derivative
            return out
        try:
            call = Call(func, args, kwargs, known, fresh)
            found = [[] for _ in fresh] if call.constant else call.found()
        except Unknown as error:
            found = [self._not_known(f"{func}: {error}", leaf) for leaf in fresh]
        for leaf, layers in zip(fresh, found, strict=True):
            self.note(leaf, layers)
        return out


def _part(layer: Tensor, tensor: Tensor) -> Tensor:
    """The part of a storage's layer that is this tensor's."""
    return layer.as_strided(tensor.shape, tensor.stride(), layer.storage_offset() + tensor.storage_offset())


def _among(tensor: Tensor, others: list[Tensor]) -> bool:
    return any(tensor is other for other in others)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0


def _tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, (list, tuple)):
        return [leaf for part in tree for leaf in _tensors(part)]
    return [leaf for part in tree.values() for leaf in _tensors(part)] if isinstance(tree, dict) else []
