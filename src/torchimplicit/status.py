"""How a solve ended: the status codes, and the reports of failures, in the words of ``prose.py``."""

from __future__ import annotations

import enum
import math
import sys
import warnings
from types import FrameType
from typing import Literal

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import occurs
from torchimplicit.prose import TOO_LOOSE, ending, failed, prose

OnFailure = Literal["warn", "raise", "nan", "ignore"]


class ConvergenceWarning(UserWarning):
    """A solve, forward or backward, ended without meeting its tolerance."""


class ConvergenceError(RuntimeError):
    """The same, under ``on_failure="raise"``."""


class Status(enum.IntEnum):
    """How a solve ended, per system (``info.status``)."""

    CONVERGED = 0
    MAX_STEPS = 1
    STAGNATED = 2
    DIVERGED = 3
    NONFINITE = 4
    SINGULAR = 5
    STOCHASTIC = 6
    SADDLE = 7
    LOCAL_MINIMUM = 8
    NO_BRACKET = 9
    INACCURATE = 10
    COUPLED = 11
    PRIMAL_INFEASIBLE = 12
    DUAL_INFEASIBLE = 13
    DEGENERATE = 14
    NONCONVEX = 15
    RUNNING = 16  # never returned: the loop's own mark of a system that goes on

    @property
    def prose(self) -> str:
        """What happened to the search for a root, the likely causes, and what to try."""
        return self.prose_for("root")

    def prose_for(self, sought: str) -> str:
        """The same for another kind of problem: "fixed point", "minimum", "least-squares fit", ..."""
        return prose(self.name, sought)


def unanswered(status: Tensor) -> Tensor:
    """Where what was sought has no value: NaN appeared, there is no solution, or none that could be told from others."""
    return (status == Status.NONFINITE) | (status == Status.NONCONVEX) | proven(status)


def proven(status: Tensor) -> Tensor:
    """Where there is no solution, as is proved, or none near where the search ended."""
    return (status == Status.PRIMAL_INFEASIBLE) | (status == Status.DUAL_INFEASIBLE)


def all_converged(status: Tensor) -> bool:
    """Whether every status is CONVERGED, which is the smallest; inside a functorch transform never (:func:`finished`)."""
    return not occurs(status)


def check_policy(on_failure: str) -> None:
    """Raise ValueError unless ``on_failure`` is one of the four policies."""
    if on_failure not in ("warn", "raise", "nan", "ignore"):
        raise ValueError(f'on_failure must be "warn", "raise", "nan" or "ignore"; got {on_failure!r}.')


def report(
    what: str,
    status: Tensor,
    error: Tensor,
    bound: Tensor,
    steps: Tensor,
    on_failure: OnFailure,
    remark: str = "",
    what_of: str = "estimated error",
    inaccurate: str = "",
) -> None:
    """Warn or raise when a system failed, naming how many did, the worst of them and why, with a remark on the function. What is said
    of the ``inaccurate`` ones may be given."""
    if on_failure in ("ignore", "nan"):
        return
    if all_converged(status):
        return
    lines = []
    for code in status[status != Status.CONVERGED].unique().tolist():
        if inaccurate and code == Status.INACCURATE:
            continue
        rows = (status == code).nonzero().flatten()
        worst = rows[error[rows].nan_to_num(nan=torch.inf).argmax()]
        size, allowed = float(error[worst]), float(bound[worst])
        how_far = f", {what_of} {size:.3g} (tolerance {allowed:.3g})" if math.isfinite(size) else ""
        lines.append(
            f"{named(rows, len(status))}: {ending(Status(code).name, what, int(steps[worst]))}{how_far}: "
            f"{Status(code).prose_for(what)}"
        )
    lines = [failed(what), *lines] if lines else []
    announce(" ".join(part for part in (inaccurate, *lines, remark) if part), on_failure)


def inaccurate(sought: str, off: Tensor, excess: Tensor, bound: Tensor, far: float) -> str:
    """What is said of derivatives at another point than what was sought.

    off : which they are, (B,); excess : by how many tolerances z is off, (B,); bound : the tolerance, (B,) or (B, leaves). What is
    off by ``far`` tolerances is too far away; for less, the derivative changes too fast.
    """
    lines = [f"The derivative is not that of the {sought}."]
    bound = bound.reshape(len(off), -1).amin(-1)
    for which, text in ((off & (excess > far), Status.INACCURATE.prose), (off & ~(excess > far), TOO_LOOSE)):
        rows = which.nonzero().flatten()
        if len(rows):
            worst = rows[excess[rows].argmax()]
            lines.append(
                f"{named(rows, len(off))}: {Status.INACCURATE.name.lower()}, z* off by about {float((excess * bound)[worst]):.3g} "
                f"(allowed {float(bound[worst]):.3g}): {text}"
            )
    return " ".join(lines)


def announce(message: str, on_failure: OnFailure) -> None:
    """Warn or raise, where that is what the user wants."""
    if on_failure == "raise":
        raise ConvergenceError(message)
    if on_failure == "warn":
        warnings.warn(message, ConvergenceWarning, stacklevel=users_frame())


def users_frame() -> int:
    """The stacklevel, for a warning of the caller, of the nearest line that is neither ours nor PyTorch's; in a backward, which
    may run on a thread without such a line, the caller's own."""
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in ("torchimplicit", "torch", "contextlib"):
            return level
        frame, level = frame.f_back, level + 1
    return 2


def named(rows: Tensor, batch: int) -> str:
    """Some systems of a batch, in words."""
    if batch == 1:
        return "The system"
    some = ", ".join(str(i) for i in rows[:5].tolist())
    return f"{len(rows)} of {batch} systems (flat index {some}{', ...' if len(rows) > 5 else ''})"
