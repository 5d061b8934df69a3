"""Putting tensors back in the noted calls of a function."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor

from torchimplicit.capture.calls import COMPARED, Call, CaptureError, map_leaves, plain_of, same, wrapped_like
from torchimplicit.capture.mode import Mode
from torchimplicit.capture.names import name


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
                if isinstance(now, COMPARED) and isinstance(before, COMPARED):
                    leaf = now = before
                plain.append(now)
                return leaf
            if position not in places:
                return leaf
            slot, depth = places[position]
            return wrapped_like(self.tensors[slot], leaf, depth)

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
