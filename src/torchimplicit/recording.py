"""The modes under :mod:`torchimplicit.capture`: noting the torch calls of a function, and putting tensors back in them."""

from __future__ import annotations

import inspect
import itertools
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from torchimplicit.names import name
from torchimplicit.transforms import current_level, level, outside_transforms


class CaptureError(RuntimeError):
    """A function uses a tensor in a way that cannot be made explicit; the message names it and says what to do."""


class Call(NamedTuple):
    """One torch call: the function, its plain arguments, and which of its leaves are explicit tensors.

    places : (position among the leaves, slot, depth: how many vmaps that the function itself entered wrap the tensor).
    """

    func: Any
    plain: tuple[Any, ...]
    places: tuple[tuple[int, int, int], ...]


_Leaf: Any = vars(torch._C._functions)["AccumulateGrad"]  # a graph ends in these
_GRAD = inspect.signature(torch.autograd.grad)


class Mode(TorchFunctionMode):
    """Sees every torch call of a function, a custom ``autograd.Function`` as one; does nothing while paused (during a
    nested implicit solve)."""

    def __init__(self) -> None:
        super().__init__()
        self.paused = False
        self.base = -1

    def __enter__(self) -> Mode:
        _modes().append(self)
        self.base = current_level()
        _show_custom_functions(+1)
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        _show_custom_functions(-1)
        _modes().pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.paused:
            return func(*args, **(kwargs or {}))
        self.paused = True  # what one torch call does inside is a part of it
        try:
            return self.call(func, args, kwargs or {})
        finally:
            self.paused = False

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError

    def returned(self, out: Any) -> Any:
        """What the function returns, as if a last call had returned it: it may be a tensor that no call was given."""
        with paused():
            return self.call(_returned, (out,), {})


class Tape(Mode):
    """Notes the calls of a function and gives every tensor that it did not make itself a slot.

    tensors : the explicit tensors; first those given, then the others in the order met.
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
        self._versions: list[int] = []
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
        self._start = _sequence(view)
        return view

    def mine(self, leaves: Sequence[Tensor]) -> None:
        """What the function is given as z is no tensor from outside."""
        self._made.update((id(leaf), leaf) for leaf in leaves)

    def modified(self) -> list[Tensor]:
        """The explicit tensors that the function changed in place."""
        return [t for t, before in zip(self.tensors, self._versions, strict=True) if version(t) != before]

    def hidden(self, out: Tensor) -> Tensor | None:
        """A tensor that needs a gradient and that ``out`` depends on beside z and the explicit ones; None if there is none."""
        return hidden(out, [*self.explicit, *self._variables], self._start)

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        plain: list[Any] = []
        places: list[tuple[int, int, int]] = []

        def visit(position: int, leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                plain.append(plain_of(leaf))
                self.foreign = self.foreign or isinstance(plain[-1], _Numbers)
                return leaf
            if id(leaf) in self._made:
                return leaf
            tensor, depth = self._unwrapped(leaf)
            slot = self._slot(tensor)
            if slot is None or depth is None:
                return leaf
            places.append((position, slot, depth))
            return _wrapped(self.explicit[slot], leaf, depth)

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
            tensor = self.around.call(_fetched, (tensor,), {})
        if tensor.is_inference() and not torch.is_inference_mode_enabled():  # it could not be saved for a backward
            self._kept.append(tensor)
            tensor = tensor.clone()
        if self.states and level(tensor) < 0 and tensor.data_ptr() in self.states:
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
        self._versions.append(version(tensor))
        self._slots.setdefault(identity, slot)
        self._slots.setdefault(id(tensor), slot)
        if self.copy:
            self._made[id(explicit)] = explicit
        return slot

    def _unwrapped(self, tensor: Tensor) -> tuple[Tensor, int | None]:
        """The tensor under the wrappers of transforms that the function itself entered, and how many they are (None if
        one is of grad, which cannot be remade)."""
        depth: int | None = 0
        while self.base < level(tensor) <= current_level():  # beyond: of a transform that has ended
            remade = depth is not None and torch._C._functorch.is_batchedtensor(tensor)
            depth = depth + 1 if remade and depth is not None else None
            tensor = torch._C._functorch.get_unwrapped(tensor)
        return tensor, depth

    def _slot(self, tensor: Tensor) -> int | None:
        """The slot of a tensor from outside, made for one that is met first; None for one that the function made."""
        slot = self._slots.get(id(tensor))
        if slot is not None:
            return slot
        if id(tensor) in self._made or any(tensor is v or tensor._base is v for v in self._variables):
            return None
        if self.first is not None and id(tensor) not in self.first._slots:
            return None
        if self.copy and self._depends_on_variables(tensor):
            return None  # the output of an operation that no mode sees
        return self._add(tensor)

    def _depends_on_variables(self, tensor: Tensor) -> bool:
        if tensor.grad_fn is None or _sequence(tensor) < self._start:
            return False
        ours = {id(t) for t in (*self.explicit, *self._variables)}
        return any(isinstance(node, _Leaf) and id(node.variable) in ours for node in _graph(tensor))


class Replay(Mode):
    """Puts explicit tensors back, call by call, and numbers, which may be of a variable that was rebound since. With ``renew``
    plain arguments may differ, and the new ones are kept."""

    def __init__(
        self,
        fn: Any,
        calls: list[Call],
        tensors: Sequence[Tensor],
        *,
        renew: bool = False,
        changing: Collection[int] = (),
    ) -> None:
        super().__init__()
        self.fn = fn
        self.calls = calls
        self.tensors = [t.clone() if slot in changing else t for slot, t in enumerate(tensors)]
        self.renew = renew
        self.index = 0

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        recorded = self.calls[self.index] if self.index < len(self.calls) else None
        if recorded is None or recorded.func != func:
            raise self._another_path(recorded, func)
        self.index += 1
        plain: list[Any] = []
        recorded_plain = iter(recorded.plain)
        places = {position: (slot, depth) for position, slot, depth in recorded.places}

        def visit(position: int, leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                now = plain_of(leaf)
                before = now if self.renew else next(recorded_plain, now)
                if isinstance(now, _COMPARED) and isinstance(before, _COMPARED):
                    leaf = now = before
                plain.append(now)
                return leaf
            if position not in places:
                return leaf
            slot, depth = places[position]
            return _wrapped(self.tensors[slot], leaf, depth)

        new_args, new_kwargs = map_leaves(args, kwargs, visit)
        if not same(recorded.plain, plain):
            if not self.renew:
                raise self._other_numbers(recorded, plain)
            self.calls[self.index - 1] = Call(func, tuple(plain), recorded.places)
        return func(*new_args, **new_kwargs)

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        if exc[0] is None and self.index < len(self.calls):
            raise self._another_path(self.calls[self.index], None)

    def _another_path(self, recorded: Call | None, func: Any) -> CaptureError:
        was = "nothing more" if recorded is None else name(recorded.func)
        now = "nothing more" if func is None else name(func)
        return CaptureError(
            f"{name(self.fn)} took another path when it was evaluated for a derivative: torch call {self.index + 1} was {was} when it "
            f"was recorded and is {now} now. Likely causes: (a) a branch on something that has changed since the forward "
            f"(module.training, a rebound variable); (b) inside a transform, a branch on z that differs between z0 and z*. "
            f"Bind what changes when you define the function (lambda z, k=k: ...), and use torch.where for a branch on data."
        )

    def _other_numbers(self, recorded: Call, plain: Sequence[Any]) -> CaptureError:
        differing = ((a, b) for a, b in zip(recorded.plain, plain, strict=False) if not same([a], [b]))
        was, now = next(differing, (recorded.plain, tuple(plain)))
        return CaptureError(
            f"{name(self.fn)} called {name(recorded.func)} with {was!r} in the forward and with {now!r} when it was evaluated for a "
            f"derivative. Likely cause: a Python variable that it reads was rebound since (late binding in a loop). Bind it with "
            f"a default argument (lambda z, k=k: ...) or pass it in args."
        )


def _wrapped(tensor: Tensor, like: Tensor, depth: int) -> Tensor:
    """``tensor`` in the outermost ``depth`` vmap wrappers of ``like``."""
    if depth == 0:
        return tensor
    functorch = torch._C._functorch
    inner = _wrapped(tensor, functorch.get_unwrapped(like), depth - 1)
    return functorch._add_batch_dim(inner, functorch.maybe_get_bdim(like), level(like))


def version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; 0 for those of inference mode, which do not tell."""
    return 0 if tensor.is_inference() else tensor._version


def hidden(out: Tensor, allowed: Sequence[Tensor], start: int) -> Tensor | None:
    """A tensor in the graph of ``out`` that is none of ``allowed``: a leaf, or (as ``out`` itself) one computed before ``start``."""
    ours = {id(t) for t in allowed}
    for node in _graph(out):
        if isinstance(node, _Leaf):
            variable: Tensor = node.variable
            if id(variable) not in ours:
                return variable
        elif node._sequence_nr() < start:
            return out
    return None


def sequence_now() -> int:
    """A number that the autograd graph recorded from here on will not fall below."""
    with torch.enable_grad():
        return _sequence(torch.zeros((), requires_grad=True).view(()))


def _sequence(tensor: Tensor) -> int:
    return int(tensor.grad_fn._sequence_nr()) if tensor.grad_fn is not None else 0


def _graph(tensor: Tensor) -> Collection[Any]:
    """The nodes of the autograd graph of a tensor."""
    seen: dict[Any, None] = {}  # in the order met
    waiting: list[Any] = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen[node] = None
            waiting += [below for below, _ in node.next_functions]
    return seen


_local = threading.local()


def _modes() -> list[Mode]:
    if not hasattr(_local, "modes"):
        _local.modes = []
    modes: list[Mode] = _local.modes
    return modes


def innermost() -> Mode | None:
    """The mode of the innermost function that is recorded or replayed, if there is one."""
    return next((mode for mode in reversed(_modes()) if not mode.paused), None)


def being_captured() -> bool:
    """True inside a function that is recorded or replayed: a nested implicit solve then shows itself as one call."""
    return innermost() is not None


def paused() -> AbstractContextManager[Any]:
    """No mode around us sees what happens here."""
    modes = [mode for mode in _modes() if not mode.paused]
    return _paused(modes) if modes else nullcontext()


@contextmanager
def _paused(modes: Sequence[Mode]) -> Iterator[None]:
    for mode in modes:
        mode.paused = True
    try:
        yield
    finally:
        for mode in modes:
            mode.paused = False


def as_one_call(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``func(*args, **kwargs)``, which a function that is being captured around us records or replays as a single call."""
    mode = innermost()
    if mode is None:
        return func(*args, **kwargs)
    with paused():  # called directly, and not by torch, the mode would see what it does itself
        return mode.call(_OneCall(func), args, kwargs)


@dataclass(frozen=True)
class _OneCall:
    func: Callable[..., Any]

    @property
    def __name__(self) -> str:
        return name(self.func)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.func(*args, **kwargs)


def _returned(out: Any) -> Any:
    """What a function returns: a last call, for it may return a tensor that no call was given."""
    return out


def _fetched(tensor: Tensor) -> Tensor:
    """A tensor that a nested function uses: recorded by the function around it, and replaced there like that of any call."""
    return tensor


_apply = vars(torch.autograd.Function)["apply"]
_capturing = 0
_counting = threading.Lock()


def _show_custom_functions(change: int) -> None:
    """While anything is being captured, ``autograd.Function.apply`` is a call like any other.

    Torch shows it to no mode. What is called in its forward would be seen, but not the tensors that its backward keeps.
    """
    global _capturing
    with _counting:
        _capturing += change
        torch.autograd.Function.apply = _shown if _capturing else _apply  # type: ignore[method-assign]


@classmethod  # type: ignore[misc]
def _shown(cls: Any, *args: Any, **kwargs: Any) -> Any:
    return as_one_call(_apply.__get__(None, cls), *args, **kwargs)


@dataclass(frozen=True)
class _Numbers:
    """What an array or a scalar of another library (NumPy, say) holds: they are changed and rebound like tensors."""

    format: str
    shape: tuple[int, ...] | None
    data: bytes

    def __repr__(self) -> str:
        return f"an array of shape {self.shape} and bytes {self.data[:16].hex()}"


_COMPARED = (bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.Size)


def plain_of(leaf: Any) -> Any:
    """What of an argument that is no tensor must be the same at every evaluation."""
    if isinstance(leaf, _COMPARED):
        return leaf
    try:
        view = memoryview(leaf)
    except TypeError:
        return type(leaf)
    return _Numbers(view.format, view.shape, view.tobytes())


def same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(x is y or x == y or (x != x and y != y) for x, y in zip(a, b, strict=True))


def tensors_in(out: Any) -> Sequence[Tensor]:
    """The tensors that a torch call has returned."""
    if isinstance(out, Tensor):
        return (out,)
    if isinstance(out, dict):
        out = tuple(out.values())
    return [t for item in out for t in tensors_in(item)] if isinstance(out, (tuple, list)) else ()


def map_leaves(args: Any, kwargs: Any, visit: Callable[[int, Any], Any]) -> tuple[Any, Any]:
    """``visit(position, leaf)`` at every leaf of the containers that torch calls take, in order."""
    if not kwargs and not any(type(arg) in _CONTAINERS for arg in args):  # most calls
        return tuple([visit(position, arg) for position, arg in enumerate(args)]), kwargs
    positions = itertools.count()
    return _walk(args, positions, visit), _walk(kwargs, positions, visit)


_CONTAINERS = (tuple, list, dict, slice)


def _walk(tree: Any, positions: Iterator[int], visit: Callable[[int, Any], Any]) -> Any:
    kind = type(tree)
    if kind is tuple or kind is list:
        return kind([_walk(item, positions, visit) for item in tree])
    if kind is dict:
        return {key: _walk(item, positions, visit) for key, item in tree.items()}
    if kind is slice:
        return slice(*(_walk(part, positions, visit) for part in (tree.start, tree.stop, tree.step)))
    return visit(next(positions), tree)
