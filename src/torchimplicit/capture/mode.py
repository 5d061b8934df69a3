"""A mode that sees every torch call of a function, and how what is nested in it is one call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from torchimplicit.capture.names import name
from torchimplicit.private import autograd, functorch


class Mode(TorchFunctionMode):
    """Sees every torch call of a function, a custom ``autograd.Function`` as one; does nothing while paused (during a
    nested implicit solve)."""

    def __init__(self) -> None:
        super().__init__()
        self.paused = False
        self.base = -1

    def __enter__(self) -> Mode:
        _modes().append(self)
        self.base = functorch.current_level()
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


def fetched(tensor: Tensor) -> Tensor:
    """A tensor that a nested function uses: recorded by the function around it, and replaced there like that of any call."""
    return tensor


_capturing = 0
_counting = threading.Lock()


def _show_custom_functions(change: int) -> None:
    """While anything is being captured, ``autograd.Function.apply`` is a call like any other.

    Torch shows it to no mode. What is called in its forward would be seen, but not the tensors that its backward keeps.
    """
    global _capturing
    with _counting:
        _capturing += change
        autograd.show_custom_functions(as_one_call if _capturing else None)
