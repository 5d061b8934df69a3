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
    with torch.no_grad(), _Following() as following:
        following.note(z, [names.view(z.shape)])
        value = f(z)
    layers = following.layers(value.detach())
    if isinstance(layers, str):
        raise NoPattern(layers)
    return _pattern([layer.detach() for layer in layers], value.shape, z.shape)


def _pattern(layers: Layers, out: torch.Size, shape: torch.Size) -> Pattern:
    """Of all systems together, from what each entry of the value (B, m) depends on."""
    (batch, m), n = out, shape[-1]
    if not layers:
        return of_places(torch.zeros(0), torch.zeros(0), m, n)
    columns = torch.stack(
        [layer.reshape(batch, m) for layer in layers], -1
    )  # (B, m, k), counted from 1 through all systems
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
    """What the entries of a storage depend on. ``layers``, of one number for each entry; or, in words, why that is not known."""

    def __init__(self, tensor: Tensor, layers: Layers | str) -> None:
        self.kept = tensor  # its storage, and with it the address, is nobody else's as long as it lives
        self.itemsize = tensor.element_size()
        self.layers = layers


class _Following(DispatchMode):
    """Notes for every storage that is written what its entries depend on. Views share it, so that they need no rule, and what is
    written through one is seen through all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, _Storage] = {}

    def layers(self, tensor: Tensor) -> Layers | str:
        """What the entries of a tensor depend on; nothing: []."""
        storage = self.storages.get(_address(tensor)) if tensor.layout == torch.strided else None
        if storage is None or isinstance(storage.layers, str):
            return [] if storage is None else storage.layers
        if storage.itemsize != tensor.element_size():
            return "a view of another dtype"
        return [_part(layer, tensor) for layer in storage.layers]

    def note(self, tensor: Tensor, layers: Layers | str) -> None:
        """The entries of a tensor, and of all that share them, depend on these."""
        if tensor.layout != torch.strided:
            raise NoPattern("a sparse tensor depends on the unknowns")
        storage = self.storages.get(_address(tensor))
        if storage is None:
            if not layers:
                return
            storage = self.storages[_address(tensor)] = _Storage(tensor, [])
        if isinstance(layers, str) or isinstance(storage.layers, str):
            storage.layers = layers if isinstance(layers, str) else storage.layers
            return
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
        unknown = next((why for why in known.values() if isinstance(why, str)), None)
        found: list[Layers] | str
        try:
            call = Call(func, args, kwargs, known, fresh)  # type: ignore[arg-type]
            found = [[] for _ in fresh] if call.constant else unknown or call.found()
        except Unknown as error:
            found = f"{func}: {error}"
        for i, leaf in enumerate(fresh):
            self.note(leaf, found if isinstance(found, str) else found[i])
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
