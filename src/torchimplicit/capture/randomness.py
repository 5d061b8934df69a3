"""Random numbers in a user's function: whether it draws any, whether they matter, and drawing the same ones every time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import inside_functorch
from torchimplicit.capture.names import name
from torchimplicit.private import functorch
from torchimplicit.private.autograd import forbids_random_numbers

Randomness = Literal["error", "frozen"]

LOOKS = 8  # in a row that find no further system with noise: dropout of z does nothing at z0 = 0, and two masks may be the same


def check_randomness(randomness: str) -> None:
    """Raise ValueError unless ``randomness`` is one of the two."""
    if randomness not in ("error", "frozen"):
        raise ValueError(
            f'randomness must be "error" (a function that draws random numbers that matter is reported) or "frozen" (it draws the '
            f"same ones at every evaluation of one solve and its backward); got {randomness!r}."
        )


def random_state(device: torch.device) -> Tensor:
    """The states of the generators that a function on this device may draw from; other ones, if it did."""
    return torch.cat(_states(device)) if device.type != "cpu" else torch.get_rng_state()


def frozen(fn: Callable[..., Any], randomness: Randomness, device: torch.device) -> Callable[..., Any]:
    """``fn``, or :class:`Frozen` from the states of the generators at this moment."""
    check_randomness(randomness)
    return Frozen(fn, device) if randomness == "frozen" else fn


class Frozen:
    """A user's function that draws the same random numbers at every evaluation, whenever that is: in the search, when it is
    recorded, in the backward.

    They are those that torch's default generators give next when this is made. The first evaluation advances the generators, as
    one evaluation of the function itself does; every other one leaves them as it found them.
    """

    def __init__(self, fn: Callable[..., Any], device: torch.device) -> None:
        self.fn = self.__wrapped__ = fn
        self.__qualname__ = name(fn)
        self._device = device
        self._states = _hidden_states(device)
        self._spent = False

    def __call__(self, z: Any, *args: Any) -> Any:
        with self._restored():
            try:
                out = self.fn(z, *args)
            except RuntimeError as error:
                if forbids_random_numbers(error):
                    raise self._forbidden() from error
                raise
            if inside_functorch():
                self._refuse_different()
        return out

    @contextmanager
    def _restored(self) -> Iterator[None]:
        if not self._spent:
            self._spent = True
            yield
            return
        before = _hidden_states(self._device)
        _restore(self._device, self._states)
        try:
            yield
        finally:
            _restore(self._device, before)

    def _forbidden(self) -> RuntimeError:
        return RuntimeError(
            f"{name(self.fn)} draws random numbers under a torch.vmap that forbids it. Let torch.vmap or torch.func.jacfwd have "
            f'randomness="same", and torch.func.jacrev chunk_size=1; or draw the masks outside and pass them in args.'
        )

    def _refuse_different(self) -> None:
        """Under such a vmap what is drawn has the shape of the batch, which the solve, made for all samples at once, has not."""
        if not functorch.vmaps_with_different_random_numbers():
            return
        if any(not torch.equal(a, b) for a, b in zip(_hidden_states(self._device), self._states, strict=True)):
            raise RuntimeError(
                f'{name(self.fn)} draws random numbers, and randomness="frozen" does not know them apart under torch.vmap(..., '
                f'randomness="different"). Use randomness="same" there (one mask for all samples), the batch dimensions of the solve '
                f"itself (batch_ndim), or draw the masks outside and pass them in args."
            )


class Watched:
    """A flat function, (B, n) -> (B, m) or (B,), that finds out whether it gives two answers for one z.

    The first evaluation tells whether random numbers were drawn; if not, nothing more is done. Else it is evaluated twice, again
    at the next z, and so on, until :data:`LOOKS` in a row have found no further system with two answers.

    noisy : the systems (B,) that have; None as long as no random numbers were drawn.
    repeated : how many second evaluations there were.
    """

    def __init__(self, f: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self.f = f
        self.noisy: Tensor | None = None
        self.repeated = 0
        self._device = device
        self._looks = LOOKS

    def __call__(self, z: Tensor) -> Tensor:
        if not self._looks:
            return self.f(z)
        before = _hidden_states(self._device)
        value = self.f(z)
        if all(torch.equal(a, b) for a, b in zip(before, _hidden_states(self._device), strict=True)):
            self._looks = 0
            return value
        with torch.no_grad():
            differs = differ(value.detach(), self.f(z.detach()))
        self.repeated += 1
        found = differs if self.noisy is None else differs & ~self.noisy
        self.noisy = differs if self.noisy is None else self.noisy | differs
        self._looks = LOOKS if not inside_functorch() and bool(found.any()) else self._looks - 1
        return value


def differ(a: Tensor, b: Tensor) -> Tensor:
    """The rows in which two values differ by more than a sum in another order makes them."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    if not a.shape[1]:
        return torch.zeros(len(a), dtype=torch.bool, device=a.device)
    size = a.abs().amax(-1) + b.abs().amax(-1)
    return (a - b).abs().amax(-1) > torch.finfo(a.dtype).eps ** 0.5 * size


def _states(device: torch.device) -> list[Tensor]:
    host = torch.get_rng_state()
    return [host] if device.type == "cpu" else [host, torch.get_device_module(device).get_rng_state(device)]


@contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """What is drawn here leaves the generators as they were."""
    before = _hidden_states(device)
    try:
        yield
    finally:
        _restore(device, before)


def _hidden_states(device: torch.device) -> list[Tensor]:
    """The states, read out of sight of transforms and of the modes that note a function's torch calls."""
    with functorch.out_of_sight():
        return _states(device)


def _restore(device: torch.device, states: list[Tensor]) -> None:
    with functorch.out_of_sight():
        torch.set_rng_state(states[0])
        if device.type != "cpu":
            torch.get_device_module(device).set_rng_state(states[1], device)
