"""Work inside a user's function that does not depend on z is done once per solve.

``tanh(z @ W.T + x @ U.T + b)`` computes ``x @ U.T`` at every evaluation and always gets the same. During a solve, evaluations
without autograd run under a mode that knows the sequence of torch calls of the first one. A call is given its first result
again if it stands at the same place in that sequence, with the very same tensors (not changed in place since, by their versions:
what ``.data`` or NumPy write is not seen), the same plain arguments, and a result that nobody has changed. After the first call that
differs, the rest is computed as usual. Where all such work reads and writes fewer than ``WORTH`` entries, nothing is given again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from torchimplicit.autograd.transforms import inside_functorch
from torchimplicit.capture.calls import map_leaves, plain_of, same, tensors_in
from torchimplicit.capture.capture import eager_cells
from torchimplicit.capture.randomness import random_state
from torchimplicit.private import pytree
from torchimplicit.private.autograd import storage, version

WORTH = 2**15  # entries read and written by what is hoisted, below which the mode costs more than it saves

_OUT_OF_SIGHT = (Tensor.numpy, Tensor.__array__, Tensor.untyped_storage, Tensor.data_ptr)


class _Versioned(NamedTuple):
    """A tensor as it was."""

    tensor: Tensor
    version: int

    @staticmethod
    def of(tensor: Tensor) -> _Versioned:
        return _Versioned(tensor, version(tensor))

    @property
    def unchanged(self) -> bool:
        """Whether it was certainly not changed in place since; a tensor of inference mode has no version that would tell."""
        return not self.tensor.is_inference() and version(self.tensor) == self.version


class _Call(NamedTuple):
    """A torch call; with what it was given and has returned, if that may be used again (``outputs`` is not empty)."""

    func: Any
    tensors: list[_Versioned]
    plain: list[Any]
    result: Any = None
    outputs: tuple[_Versioned, ...] = ()


class Hoisted:
    """``fn`` for the evaluations of one solve."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self._calls: list[_Call] | None = None

    def __call__(self, z: Any, *args: Any) -> Any:
        if torch.is_grad_enabled() or self._calls == []:
            return self.fn(z, *args)
        if self._calls is not None:
            with eager_cells(), _Again(self._calls):
                return self.fn(z, *args)
        first = _First(z)
        with eager_cells(), first:
            out = self.fn(z, *args)
        self._calls = first.hoisted()
        return out


class _First(TorchFunctionMode):
    """Notes the calls of the first evaluation, and which of them do not depend on z."""

    def __init__(self, z: Any) -> None:
        super().__init__()
        leaves = pytree.tree_leaves(z)
        self.device = leaves[0].device
        self.calls: list[_Call] = []
        self.dependent = {_memory(leaf): leaf for leaf in leaves}  # kept alive, so that no memory is used twice
        self.refused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Some writes no version tells of; a function that differentiates something itself needs its graph, one under
        # torch.compile no help.
        unseen = func in _OUT_OF_SIGHT or inside_functorch() or torch.is_grad_enabled() or self._compiled()
        self.refused = self.refused or unseen
        if self.refused:
            return func(*args, **kwargs)
        tensors, plain = _leaves(args, kwargs)
        dependent = any(_memory(given.tensor) in self.dependent for given in tensors)
        before = None if dependent else random_state(self.device)
        out = func(*args, **kwargs)
        if before is not None and not torch.equal(before, random_state(self.device)):
            self.refused = True  # without this call, others would draw other numbers
        outputs = tuple(_Versioned.of(tensor) for tensor in tensors_in(out))
        changed = [given.tensor for given in tensors if not given.unchanged]
        if changed or not outputs or dependent:
            self.dependent.update((_memory(tensor), tensor) for tensor in (*changed, *(t.tensor for t in outputs)))
            self.calls.append(_Call(func, [], []))
        else:
            self.calls.append(_Call(func, tensors, plain, out, outputs))
        return out

    def hoisted(self) -> list[_Call]:
        """The calls, with their results where nobody has changed them; none if it is not worth while."""
        kept = [call if all(t.unchanged for t in call.outputs) else _Call(call.func, [], []) for call in self.calls]
        work = sum(t.tensor.numel() for call in kept for t in (*call.tensors, *call.outputs))
        return [] if self.refused or work < WORTH else kept

    def _compiled(self) -> bool:
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and frame.f_code is not Hoisted.__call__.__code__:
            if frame.f_code.co_filename.endswith("_dynamo/eval_frame.py"):
                return True
            frame = frame.f_back
        return False


class _Again(TorchFunctionMode):
    """Gives known results, until a call differs from that of the first evaluation."""

    def __init__(self, calls: list[_Call]) -> None:
        super().__init__()
        self.calls = iter(calls)
        self.known = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.known:
            call = next(self.calls, None)
            self.known = call is not None and call.func == func
            if call is not None and self.known and call.outputs:
                self.known = _same_call(call, args, kwargs)
                if self.known:
                    return call.result
        return func(*args, **kwargs)


def _same_call(call: _Call, args: Any, kwargs: Any) -> bool:
    tensors, plain = _leaves(args, kwargs)
    return (
        len(tensors) == len(call.tensors)
        and all(now.tensor is then.tensor and now.version == then.version for now, then in zip(tensors, call.tensors))
        and same(plain, call.plain)
        and all(output.unchanged for output in call.outputs)
    )


def _leaves(args: Any, kwargs: Any) -> tuple[list[_Versioned], list[Any]]:
    """The tensors and the plain arguments of a call."""
    tensors: list[_Versioned] = []
    plain: list[Any] = []

    def visit(_: int, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            tensors.append(_Versioned.of(leaf))
        else:
            plain.append(plain_of(leaf))
        return leaf

    map_leaves(args, kwargs, visit)
    return tensors, plain


def _memory(tensor: Tensor) -> int:
    """What a tensor shares with its views and its ``.data``, whose versions are their own."""
    return storage(tensor) if tensor.layout == torch.strided else id(tensor)
