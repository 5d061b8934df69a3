"""The condition g(z, x) = 0 that defines z*, as a pure function of flat unknowns and explicit tensors.

A *kind* of problem says what its condition is in terms of the user's function: g itself (root), z − f(z) (fixed point),
∇φ (minimum), ∇½‖r‖² (least squares). Everything below the problems knows the condition only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Flat = Callable[[Tensor], Tensor]


class Kind(Protocol):
    """What of the user's function f(z) must vanish, and the scale in which "vanishes" is judged."""

    @property
    def name(self) -> str:
        """What is sought, as errors call it."""
        ...

    @property
    def symmetric(self) -> bool:
        """Whether the condition's Jacobian is symmetric."""
        ...

    @property
    def minimised(self) -> bool:
        """Whether it is a Hessian, and the solution a minimum only where that has no negative eigenvalue."""
        ...

    @property
    def near_identity(self) -> bool:
        """Whether it is the identity less what may be a contraction: that of a fixed point."""
        ...

    def residual(self, f: Flat, z: Tensor) -> Tensor:
        """The condition at z: (B, n) -> (B, n). Signed so that a plain step is z − residual."""
        ...

    def scale(self, z: Tensor, start: Tensor) -> Tensor:
        """(B,): what rtol is relative to, from z and the norm of the residual at the start."""
        ...


class Vmap(NamedTuple):
    """A vmap level around a condition: its size, and for each tensor 0 or None, as it carries the batch or does not."""

    size: int
    dims: tuple[int | None, ...]


@dataclass(frozen=True)
class Condition:
    """g as a pure function ``condition(z, *tensors)``: (B, n) -> (B, n), for any number of vmap levels (outermost first)."""

    function: Callable[..., Tensor]
    symmetric: bool = False
    near_identity: bool = False
    vmaps: tuple[Vmap, ...] = ()

    def __call__(self, z: Tensor, *tensors: Tensor) -> Tensor:
        return self.function(z, *tensors)

    def vmapped(self, size: int, dims: Sequence[int | None]) -> Condition:
        """The condition of ``size`` times as many systems: those tensors whose dim is 0 have one more dimension in front."""
        one = self.function

        def all_of_them(z: Tensor, *tensors: Tensor) -> Tensor:
            z = z.unflatten(0, (size, -1)) if z.shape[0] else z.new_zeros(size, 0, z.shape[1])
            return torch.vmap(one, in_dims=(0, *dims), randomness="same")(z, *tensors).flatten(0, 1)

        return replace(self, function=all_of_them, vmaps=(Vmap(size, tuple(dims)), *self.vmaps))
