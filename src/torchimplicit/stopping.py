"""When a solve stops and what is said of it: tolerances, the norm, status codes and their prose. The one place for all."""

from __future__ import annotations

import enum
import sys
import warnings
from types import FrameType
from typing import Literal

import torch
from torch import Tensor

from torchimplicit.linear.factors import inverse_power_of_two
from torchimplicit.linear.iteration import LinearResult
from torchimplicit.transforms import finished, occurs

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
    RUNNING = 11  # never returned: the loop's own mark of a system that goes on

    @property
    def prose(self) -> str:
        """What happened, the likely causes, and what to try."""
        return _PROSE[self]


_PROSE = {
    Status.CONVERGED: "the residual met the tolerance.",
    Status.MAX_STEPS: (
        "the step limit was reached before the tolerance. Likely causes: (a) slow convergence (a contraction factor near 1); "
        "(b) a tolerance tighter than needed; (c) no solution near the start. Try a larger max_steps, another solver "
        "('newton', 'anderson', 'newton_krylov'), a better z0, or a looser rtol."
    ),
    Status.STAGNATED: (
        "the residual stopped falling above the tolerance. Likely causes: (a) the tolerance lies below the rounding floor of "
        "this dtype; (b) a local minimum of the residual that is no root; (c) a cycle; (d) a jump or a pole of g, where it "
        "changes its sign without a root, and none was found beyond. Try a looser rtol/atol, float64, another z0 or solver."
    ),
    Status.DIVERGED: (
        "the residual grew without bound. Likely causes: (a) a fixed-point map that is not a contraction (plain steps need a "
        "spectral radius below 1); (b) a Newton start too far away. Try 'anderson' or 'newton', damping, or a better z0."
    ),
    Status.NONFINITE: (
        "NaN or Inf appeared. Likely causes: (a) NaN or Inf in the arguments; (b) a step out of g's domain (log, sqrt, "
        "division); (c) overflow. Check the arguments, choose z0 inside the domain, damp the steps, or reparametrise z."
    ),
    Status.SINGULAR: (
        "the Jacobian dg/dz is singular to working precision, so the implicit function theorem does not apply: dz*/dx does not "
        "exist or is not unique. Likely causes: (a) a multiple root or a fold; (b) fewer independent equations than unknowns. "
        "Reparametrise or regularise the condition; no solver can give this gradient."
    ),
    Status.STOCHASTIC: (
        "g gave two different answers for one z: it is stochastic, so it has no root to converge to. Likely causes: (a) dropout "
        "in training mode; (b) random numbers drawn inside g. Draw the noise (or the dropout mask) once, outside, and pass it "
        "in args, or call .eval() on the module."
    ),
    Status.SADDLE: (
        "the gradient vanishes, but the Hessian has a negative eigenvalue: a saddle point or a maximum, not a minimum. Likely "
        "causes: (a) a solver of equations, such as 'newton', that goes to the nearest stationary point; (b) a start that is "
        "stationary itself. Start nearer to the minimum, or take a solver that goes downhill ('trust_newton', the default, or 'lbfgs')."
    ),
    Status.LOCAL_MINIMUM: (
        "the norm of g has a local minimum here that is no root: no small step makes it smaller. Likely causes: (a) the equations "
        "have no root near the start; (b) the start lies in the basin of this minimum. Start elsewhere, check that the equations "
        "have a root for these arguments, or take ti.least_squares if the smallest residual is what is wanted."
    ),
    Status.NO_BRACKET: (
        "no interval was found in which g changes its sign, so there is nothing to bisect. Likely causes: (a) g has no root "
        "there; (b) an even number of roots between the ends; (c) the search started too far away. Give a bracket whose ends have "
        "opposite signs, or start nearer to the root."
    ),
    Status.INACCURATE: (
        "z* lies farther from the solution than its tolerance allows, as Newton's correction there says, so this is the "
        "derivative at another point. Likely causes: (a) a solver whose progress was too slow to judge the error by; (b) a solver of "
        "your own, or a black box, that stopped early; (c) a multiple root, near which all are slow. Try a smaller rtol, another "
        "solver, or a better z0."
    ),
    Status.RUNNING: "the solve has not ended.",
}


def all_converged(status: Tensor) -> bool:
    """Whether every status is CONVERGED, which is the smallest; inside a functorch transform never (:func:`finished`)."""
    return not occurs(status)


def rms(v: Tensor) -> Tensor:
    """Root-mean-square norm of each row: (B, n) -> (B,)."""
    if v.shape[-1] == 0:
        return v.new_zeros(v.shape[:-1])
    if v.shape[-1] == 1:
        return v.abs().squeeze(-1)
    return torch.linalg.vector_norm(v, dim=-1) / v.shape[-1] ** 0.5


def measured(v: Tensor) -> Tensor:
    """The same, also of numbers whose squares vanish or overflow: (B, n) -> (B,)."""
    norm, about = rms(v), torch.finfo(v.dtype)
    if v.shape[-1] <= 1 or finished((norm > about.tiny**0.5 / about.eps) & (norm < torch.inf)):
        return norm
    unit = 1 / inverse_power_of_two(v.abs().amax(-1, keepdim=True))
    return rms(v / unit) * unit.squeeze(-1)


def rounding(value: Tensor) -> Tensor:
    """Changes of an objective that rounding may hide, (B,): eps^(2/3) of its size.

    Below it, how much lower a point lies is read off the slopes on the way there, which are exact where differences of values
    are not: a value near a minimum tells it to √eps only.
    Source: Hager and Zhang, A new conjugate gradient method with guaranteed descent and an efficient line search, SIAM J. Optim.
    16 (2005), section 4 ("approximate Wolfe conditions").
    """
    return torch.finfo(value.dtype).eps ** (2 / 3) * value.abs()


def linear_status(result: LinearResult) -> Tensor:
    """How the solution of a linear system ended, per system."""
    status = torch.where(result.exhausted, Status.MAX_STEPS, Status.STAGNATED)
    status = torch.where(result.converged, Status.CONVERGED, status)
    return torch.where(result.residual_norm.isfinite() & result.x.isfinite().all(-1), status, Status.NONFINITE)


def check_policy(on_failure: str) -> None:
    """Raise ValueError unless ``on_failure`` is one of the four policies."""
    if on_failure not in ("warn", "raise", "nan", "ignore"):
        raise ValueError(f'on_failure must be "warn", "raise", "nan" or "ignore"; got {on_failure!r}.')


def check_steps(max_steps: int | None) -> None:
    """Raise ValueError unless ``max_steps`` is None or a number of steps."""
    if max_steps is not None and (isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 0):
        raise ValueError(f"max_steps must be an integer >= 0 (or None for the solver's default); got {max_steps!r}.")


def report(
    what: str,
    status: Tensor,
    error: Tensor,
    bound: Tensor,
    steps: Tensor,
    on_failure: OnFailure,
    raised: str = "",
    what_of: str = "estimated error",
) -> None:
    """Warn or raise when a system failed, naming how many did, the worst of them and why, and what the function has raised."""
    if on_failure in ("ignore", "nan"):
        return
    if all_converged(status):
        return
    failed = status != Status.CONVERGED
    lines = []
    for code in status[failed].unique().tolist():
        rows = (status == code).nonzero().flatten()
        worst = rows[error[rows].nan_to_num(nan=torch.inf).argmax()]
        lines.append(
            f"{named(rows, len(status))}: {Status(code).name.lower()} after {int(steps[worst])} steps, {what_of} "
            f"{float(error[worst]):.3g} (tolerance {float(bound[worst]):.3g}): {Status(code).prose}"
        )
    if raised:
        lines.append(f"At a trial point the function raised {raised}")
    tell(f"The {what} was not found. " + " ".join(lines), on_failure)


def tell(message: str, on_failure: OnFailure) -> None:
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
