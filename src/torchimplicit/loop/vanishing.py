"""Where no root is, though g counts as 0: equations that have only become too small for a float, and z that has run off."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import below, occurs, tracing
from torchimplicit.linear.vectors import unpatterned
from torchimplicit.loop.convergence import FALLEN
from torchimplicit.norms import FAR, distant, extent, measured
from torchimplicit.solvers.equations import Equations
from torchimplicit.status import Status

ULPS = 4  # in units of eps and of the size of z: what a difference of numbers like z consists of
HALVINGS = 30  # of the way from the start, for the place where a function vanishes
FARTHER = 60  # the same where z is distant


def vanishes(equations: Equations, z: Tensor, z0: Tensor) -> Tensor:
    """Of systems whose g is exactly 0 at z, those (B,) where an equation has only become too small for a float on the way from z0, as
    e⁻ᶻ and 1 − tanh z do, or for the numbers that it is a difference of, as (z + e⁻ᶻ) − z does, so that z is no root.

    Such an equation stays 0 beyond z. Where the first of them becomes 0 for the first time tells it from one with a whole region of
    roots: to these Newton's step leads from nearby, or they begin with a jump, and to the others it points as far beyond as ever from
    numbers that are nothing but rounding. An equation is asked for the shortest step that it could be met by.
    """
    with torch.no_grad():
        eps, d, far = torch.finfo(z.dtype).eps, z - z0, distant(extent(z0), measured(z))
        rows = torch.ones_like(z, dtype=torch.bool)  # the equations, (B, n)
        if equations.kind.near_identity and not occurs(rows := _rounded(equations, z, 0.0)):
            return rows.any(-1)  # the zeros of a ReLU network move with their own unknown
        value, begins = equations.residual(z), equations.residual(z0)
        rows = met = rows & (value == 0) & (begins != 0)
        for beyond in (eps**FALLEN, 1):  # farther on a multiple root is one no more
            ahead = equations.attempt(equations.residual, z + beyond * d) if occurs(rows) else None
            rows = torch.zeros_like(met) if ahead is None else rows & (ahead == 0)
        gone = rows.any(-1)
        if occurs(gone):
            gone = gone & _faded(equations, z0, d, rows, begins, FARTHER if occurs(far) else HALVINGS)
        return gone | _drowned(equations, z, met) if occurs(far & ~gone) else gone


def _faded(equations: Equations, z0: Tensor, d: Tensor, rows: Tensor, begins: Tensor, halvings: int) -> Tensor:
    """Whether what has become 0 first of some equations was nothing but rounding just before, and Newton's step there long, (B,)."""
    eps = torch.finfo(d.dtype).eps
    low, high = torch.zeros_like(d[:, :1]), torch.ones_like(d[:, :1])
    for _ in range(halvings):
        middle = (low + high) / 2
        value = equations.attempt(equations.residual, z0 + middle * d)
        if value is None:
            return torch.zeros_like(rows[:, 0])
        zero = ((value == 0) & rows).any(-1, keepdim=True)
        low, high = torch.where(zero, low, middle), torch.where(zero, middle, high)
    first = rows & (equations.residual(z0 + high * d) == 0)  # not those that have their root farther on
    there = equations.jacobian(z0 + low * d)
    slope = there.matvec(unpatterned(d)) * measured(low * d).unsqueeze(-1)  # about ‖row‖ ‖way‖
    beyond = torch.where(first & (there.value != 0), there.value / slope, 0).abs().nan_to_num(nan=torch.inf)
    rounded = (eps**0.5 * begins.abs()).maximum(ULPS * eps * measured(z0 + high * d).unsqueeze(-1))
    return ((beyond > eps**0.5) & (there.value.abs() <= rounded)).any(-1)


def _drowned(equations: Equations, z: Tensor, rows: Tensor) -> Tensor:
    """Whether one of the equations in ``rows``, (B, n), stays what it is where each unknown moves by a good part of itself, though the
    Jacobian says otherwise, (B,): rounding is all that is left of it."""
    d, here = _aside(z), equations.jacobian(z)
    expected, beside = here.matvec(d), equations.attempt(equations.residual, z + d)
    if beside is None:
        return torch.zeros_like(z[:, 0], dtype=torch.bool)
    return (
        rows & ((beside - here.value).abs() <= torch.finfo(z.dtype).eps ** 0.5 * expected.abs()) & (expected != 0)
    ).any(-1)


def _rounded(equations: Equations, z: Tensor, value: Tensor | float) -> Tensor:
    """The equations of a fixed point, (B, n), whose ``value`` at z changes by nothing but rounding of z from there to beside it."""
    found = equations.attempt(equations.residual, z + _aside(z))
    if found is None:
        return torch.zeros_like(z, dtype=torch.bool)
    return (found - value).abs() <= ULPS * torch.finfo(z.dtype).eps * z.abs()


def _aside(z: Tensor) -> Tensor:
    """A move (B, n) of each unknown by a good part of itself."""
    return torch.finfo(z.dtype).eps ** FALLEN * torch.where(z != 0, z.abs(), 1) * unpatterned(z)


def run_off(equations: Equations, z0: Tensor, z: Tensor, start: Tensor, status: Tensor) -> Tensor:
    """Of fixed points that count as found, DIVERGED where a number of z has gone so far that z + 1 is z, and f(z) − z is nothing but
    rounding beside z too. In a graph, where that is not looked at: where the rounding of z is as large as f(z) − z was at the start."""
    eps, size = torch.finfo(z.dtype).eps, measured(z)
    if below(size, eps**-FAR):
        return status
    first = extent(z0)
    off = distant(first, size) & (status == Status.CONVERGED)
    if tracing():
        off = off & (size * eps > start * eps**FALLEN)
    elif occurs(off):
        with torch.no_grad():
            rounded = _rounded(equations, z, equations.residual(z))
            off = off & (rounded & distant(first.unsqueeze(-1), z.abs())).any(-1)
    return torch.where(off, Status.DIVERGED, status)
