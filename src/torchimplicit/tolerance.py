"""When z is near enough to a solution: the estimated error of z against a tolerance, both in z's own units."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchimplicit.norms import largest, measured, rms

Norm = Callable[[Tensor], Tensor]

ROUNDING = 4  # in units of eps: no z is asked to be nearer than this part of itself
FLOOR = 0.75  # an error of eps to this power of z is rounding error where nothing makes it smaller


@dataclass(frozen=True)
class Tolerance:
    """The error of each number of z is at most atol + rtol · rms(z), where the rms is taken over each leaf of z for itself.

    The error is taken in the maximum norm, so that no number hides behind many others, and leaf by leaf, for the leaves of a
    pytree may have units of their own. ``leaves`` : how many numbers of a system each leaf holds; () for a single one. ``free`` : how
    many of the last of them may be off by anything, for the others say what they are.
    """

    rtol: float
    atol: float
    leaves: tuple[int, ...] = ()
    free: int = 0

    @staticmethod
    def of(rtol: float | None, atol: float | None, dtype: torch.dtype) -> Tolerance:
        """Defaults follow the dtype: rtol = √eps, atol = eps; where g itself computes in half precision, whose √eps would be
        satisfied by anything, rtol = 4 eps.
        """
        about = torch.finfo(dtype)
        for name, value in (("rtol", rtol), ("atol", atol)):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and 0 <= value < math.inf):
                raise ValueError(f"{name} must be a finite number >= 0 (or None for the default); got {value!r}.")
        default = 4 * about.eps if about.bits == 16 else about.eps**0.5
        return Tolerance(default if rtol is None else float(rtol), about.eps if atol is None else float(atol))

    def of_leaves(self, widths: tuple[int, ...], free: int = 0) -> Tolerance:
        """The same for z with leaves of so many numbers each."""
        return replace(self, leaves=widths if len(widths) > 1 else (), free=free)

    def floor(self, dtype: torch.dtype) -> Tolerance:
        """What counts as rounding error of a z that gets no better, if that is more than what was asked for."""
        return replace(self, rtol=max(self.rtol, torch.finfo(dtype).eps ** FLOOR))

    def of_zero(self, dtype: torch.dtype) -> float:
        """No smaller than the tolerance of any z that is itself no longer than twice that."""
        return self.atol * (1 + min(1.0, 4 * max(self.rtol, ROUNDING * torch.finfo(dtype).eps)))

    def bound(self, z: Tensor, norm: Norm = rms) -> Tensor:
        """The largest error of a number that counts as converged, (B,); of several leaves (B, leaves)."""
        rtol = max(self.rtol, ROUNDING * torch.finfo(z.dtype).eps)
        scale = norm(z) if not self.leaves else torch.stack([norm(part) for part in z.split(self.leaves, -1)], -1)
        # A z of zeros is as near as can be, whatever was asked for.
        bound = scale * rtol + (self.atol or torch.finfo(z.dtype).tiny)
        if self.free:
            bound = torch.cat([bound[..., : -self.free], torch.full_like(bound[..., -self.free :], torch.inf)], -1)
        return bound

    def each(self, z: Tensor) -> Tensor:
        """The error that each number of z may have, (B, n)."""
        bound = self.bound(z)
        if not self.leaves:
            return bound.unsqueeze(-1).expand_as(z)
        return bound.repeat_interleave(torch.tensor(self.leaves, device=z.device), -1)

    def largest(self, correction: Tensor, z: Tensor, norm: Norm = measured) -> tuple[Tensor, Tensor]:
        """The largest change of a number of z, in the leaf where it is largest beside its tolerance, and that tolerance: (B,) each."""
        return self.worst(correction.detach(), self.bound(z, norm), largest)

    def worst(self, correction: Tensor, bound: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        """The norm of a change of z in the leaf where it is largest beside its tolerance, given as :meth:`bound` has it, and that."""
        if not self.leaves:
            return norm(correction), bound
        sizes = torch.stack([norm(part) for part in correction.split(self.leaves, -1)], -1)
        worst = (sizes / bound).argmax(-1, keepdim=True)
        return sizes.gather(-1, worst).squeeze(-1), bound.gather(-1, worst).squeeze(-1)
