"""What is asked of the loop. Whether a system has done it, :mod:`torchimplicit.loop.convergence` decides."""

from __future__ import annotations

from dataclasses import dataclass

from torchimplicit.tolerance import Tolerance


@dataclass(frozen=True)
class LoopSettings:
    """What is asked of the loop.

    tolerance : of the error of z.
    max_steps : at most so many steps.
    strictness : how many times smaller than the tolerance the estimate of a method has to be that was seen to be so much too small.
    exactly : take this many steps whatever happens (the explicit way).
    at_least_one : also from a start that is a root (the explicit way has no gradient without a step).
    forgiving : a step in which the function raises is the last one, not an error: those that still run have failed.
    """

    tolerance: Tolerance
    max_steps: int
    strictness: float = 1.0
    exactly: int | None = None
    at_least_one: bool = False
    forgiving: bool = False
