"""Proofs that a program has no solution, found for themselves: as the nearest points of cones, which are programs that have one."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.programs.active_set import CHANGES, WEAK, settle
from torchimplicit.programs.interior_point import interior, proves_infeasible, proves_unbounded
from torchimplicit.programs.quadratic import OneSided, Programs
from torchimplicit.programs.rows import Rows

ACCURACY = 1e-6
MAX_STEPS = 100


def infeasibility(program: OneSided) -> tuple[Tensor, Tensor]:
    """Multipliers y (B, M, 1) with Rᵀy = 0, y ≥ 0 where the row is no equality, and tᵀy < 0, and whether they prove it, (B,).

    Of the cone of such y, less the last condition, the nearest to −t has tᵀy = −‖y‖².
    """
    if not program.t.shape[-2]:
        return program.t, torch.zeros(len(program.t), dtype=torch.bool, device=program.t.device)
    R = program.rows.dense()
    y = _nearest(R.mT, program.t, torch.where(program.equal, -torch.inf, 0.0), torch.full_like(program.t, torch.inf))
    y = torch.where(program.equal, y, y.clamp(min=0))  # which rounding may have left below 0
    Ry, ty = program.rows.transposed(y), (program.t * y).sum(-2, keepdim=True)
    return y, proves_infeasible(Ry, ty).flatten()


def unboundedness(program: OneSided) -> tuple[Tensor, Tensor]:
    """A direction x (B, n, 1) with Qx = 0, R x ≤ 0, or = 0 in an equality, and qᵀx < 0, and whether it proves it, (B,).

    Of the cone of such x, less the last condition, the nearest to −q has qᵀx = −‖x‖².
    """
    R = program.rows.dense()
    zero = torch.zeros_like(program.q)
    lower = torch.cat([zero, torch.where(program.equal, 0.0, -torch.inf)], -2)
    x = _nearest(torch.cat([program.Q, R], -2), program.q, lower, torch.zeros_like(lower), of_rows=True)
    Qx, Rx, qx = program.Q @ x, program.rows.apply(x), (program.q * x).sum(-2, keepdim=True)
    return x, proves_unbounded(Qx, torch.where(program.equal, Rx.abs(), Rx.clamp(min=0)), qx).flatten()


def _nearest(C: Tensor, q: Tensor, lower: Tensor, upper: Tensor, of_rows: bool = False) -> Tensor:
    """The x nearest to −q with C x = 0 and lower ≤ x ≤ upper, or, where the bounds are those ``of_rows``, lower ≤ C x ≤ upper."""
    size = q.abs().amax(-2, keepdim=True)
    size = torch.where(size > 0, size, 1)
    eye = torch.eye(q.shape[-2], dtype=q.dtype, device=q.device).expand(len(q), -1, -1)
    if of_rows:
        rows, bounds = Rows(C), 0
    else:
        zero = C.new_zeros(*C.shape[:-1], 1)
        rows, bounds = Rows(C, (torch.ones_like(q),)), q.shape[-2]
        lower, upper = torch.cat([zero, lower], -2), torch.cat([zero, upper], -2)
    programs = Programs(eye, q / size, rows, lower, upper)
    steps = torch.zeros(len(q), dtype=torch.int64, device=q.device)
    point, _, _ = interior(programs.one_sided(bounds), steps, MAX_STEPS, ACCURACY)
    y = OneSided.signed(point.y / point.tau, bounds)
    found = settle(programs, point.x / point.tau, y, WEAK, torch.full_like(steps, CHANGES))
    x: Tensor = found.x * size
    return x
