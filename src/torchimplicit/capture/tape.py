"""Noting the torch calls of a function, each with the tensors that it did not make itself."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from torchimplicit.autograd.graph import hidden, reaches, sequence
from torchimplicit.autograd.transforms import outside_transforms
from torchimplicit.capture.calls import Call, CaptureError, Numbers, map_leaves, plain_of, tensors_in, wrapped_like
from torchimplicit.capture.mode import Mode, fetched
from torchimplicit.private import functorch
from torchimplicit.private.autograd import is_view_of, version

SHAPES = {  # calls that read nothing of a tensor but its shape and kind, which no change in place touches
    *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device")),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__, Tensor.is_floating_point, Tensor.is_complex),
    *(torch.numel, torch.is_floating_point, torch.is_complex),
}
_GRAD = inspect.signature(torch.autograd.grad)


class Tape(Mode):
    """Notes the calls of a function and gives every tensor that it did not make itself a slot.

    tensors : the explicit tensors; first those given, then the others in the order met.
    versions : of these, when each was met.
    explicit : what stands in their place during this evaluation: fresh copies (``copy=True``) or themselves.
    """

    def __init__(
        self,
        given: Sequence[Tensor],
        *,
        copy: bool = False,
        first: Tape | None = None,
        states: Collection[int] = (),
        around: Mode | None = None,
    ) -> None:
        super().__init__()
        self.around = around  # the mode of a function around this one: through it a tensor of either is fetched
        self.states = states  # addresses of tensors that change at every evaluation: a snapshot stands for each
        self.changing: set[int] = set()  # their slots
        self.copy = copy
        self.first = first  # an earlier evaluation: what it did not meet was made by the function itself
        self.tensors: list[Tensor] = []
        self.explicit: list[Tensor] = []
        self.calls: list[Call] = []
        self.entries = 0  # of all that the calls returned
        self.foreign = (
            False  # whether a call was given numbers in the memory of another library, which may change unseen
        )
        self.versions: list[int] = []
        self._slots: dict[int, int] = {}
        self._made: dict[int, Tensor] = {}  # kept alive, so that no identity is used twice
        self._kept: list[Tensor] = []
        self._variables: list[Tensor] = []
        self._start = 0
        for tensor in given:
            self._add(tensor)

    def unknown(self, z: Tensor) -> Tensor:
        """A variable of this evaluation with the values of z, where copies are made."""
        variable = z.detach().requires_grad_()
        self._variables.append(variable)
        view = variable.view_as(variable)
        self._start = sequence(view)
        return view

    def give(self, leaves: Sequence[Tensor]) -> None:
        """What the function is given as z is no tensor from outside."""
        self._made.update((id(leaf), leaf) for leaf in leaves)

    def modified(self) -> list[Tensor]:
        """The explicit tensors that the function changed in place."""
        return [t for t, before in zip(self.tensors, self.versions, strict=True) if version(t) != before]

    def hidden(self, out: Tensor) -> Tensor | None:
        """A tensor that needs a gradient and that ``out`` depends on beside z and the explicit ones; None if there is none."""
        return hidden(out, [*self.explicit, *self._variables], self._start)

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        plain: list[Any] = []
        places: list[tuple[int, int, int]] = []

        def visit(position: int, leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                plain.append(plain_of(leaf))
                self.foreign = self.foreign or isinstance(plain[-1], Numbers)
                return leaf
            if id(leaf) in self._made:
                return leaf
            if func in SHAPES and id(leaf) not in self._slots and functorch.level(leaf) < 0:
                return leaf
            tensor, depth = self._unwrapped(leaf)
            slot = self._slot(tensor)
            if slot is None or depth is None:
                return leaf
            places.append((position, slot, depth))
            return wrapped_like(self.explicit[slot], leaf, depth)

        new_args, new_kwargs = map_leaves(args, kwargs, visit)
        if func is torch.autograd.grad and not _GRAD.bind(*new_args, **new_kwargs).arguments.get("create_graph", False):
            raise CaptureError(
                "the function calls torch.autograd.grad without create_graph=True: what that returns has no derivative, so the "
                "gradient would be wrong. Pass create_graph=True, or compute what is meant as a constant outside."
            )
        out = func(*new_args, **new_kwargs)
        self.calls.append(Call(func, tuple(plain), tuple(places)))
        for tensor in tensors_in(out):
            if id(tensor) not in self._slots:
                self._made[id(tensor)] = tensor
                self.entries += tensor.numel()
        return out

    def _add(self, tensor: Tensor) -> int:
        slot = len(self.tensors)
        identity = id(tensor)
        if self.around is not None:
            self._kept.append(tensor)
            tensor = self.around.call(fetched, (tensor,), {})
        if tensor.is_inference() and not torch.is_inference_mode_enabled():  # it could not be saved for a backward
            self._kept.append(tensor)
            tensor = tensor.clone()
        if self.states and functorch.level(tensor) < 0 and tensor.data_ptr() in self.states:
            self._kept.append(tensor)
            self.changing.add(slot)
            tensor = tensor.clone()
            explicit = tensor.clone()
        else:
            explicit = tensor
            if self.copy:
                with outside_transforms():  # the function may be inside one of its own
                    explicit = tensor.detach().requires_grad_(tensor.requires_grad)
        self.tensors.append(tensor)
        self.explicit.append(explicit)
        self.versions.append(version(tensor))
        self._slots.setdefault(identity, slot)
        self._slots.setdefault(id(tensor), slot)
        if self.copy:
            self._made[id(explicit)] = explicit
        return slot

    def _unwrapped(self, tensor: Tensor) -> tuple[Tensor, int | None]:
        """The tensor under the wrappers of transforms that the function itself entered, and how many they are (None if
        one is of grad, which cannot be remade)."""
        depth: int | None = 0
        while self.base < functorch.level(tensor) <= functorch.current_level():  # beyond: of a transform that has ended
            remade = depth is not None and functorch.batched(tensor)
            depth = depth + 1 if remade and depth is not None else None
            tensor = functorch.inside(tensor)
        return tensor, depth

    def _slot(self, tensor: Tensor) -> int | None:
        """The slot of a tensor from outside, made for one that is met first; None for one that the function made."""
        slot = self._slots.get(id(tensor))
        if slot is not None:
            return slot
        if id(tensor) in self._made or any(tensor is v or is_view_of(tensor, v) for v in self._variables):
            return None
        if self.first is not None and id(tensor) not in self.first._slots:
            return None
        if self.copy and self._depends_on_variables(tensor):
            return None  # the output of an operation that no mode sees
        return self._add(tensor)

    def _depends_on_variables(self, tensor: Tensor) -> bool:
        if tensor.grad_fn is None or sequence(tensor) < self._start:
            return False
        return reaches(tensor, [*self.explicit, *self._variables])
