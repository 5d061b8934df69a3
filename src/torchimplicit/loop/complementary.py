"""A second look at complementarity problems: are they solved in the units of z, whatever the unit of each row of F?"""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished, no_more_than
from torchimplicit.bounds import projected_gradient
from torchimplicit.condition import held
from torchimplicit.linear import LU
from torchimplicit.linear.dense import Dense
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.loop.endings import DIAGNOSE_ENTRIES, DIAGNOSE_LIMIT, DOUBT
from torchimplicit.solvers.equations import Equations
from torchimplicit.status import Status
from torchimplicit.tolerance import Tolerance

PROBES = 4  # products that tell the sizes of the rows of a Jacobian that is not formed


def complementary(
    equations: Equations,
    z: Tensor,
    lower: Tensor,
    upper: Tensor,
    status: Tensor,
    error: Tensor,
    bound: Tensor,
    tolerance: Tolerance,
) -> tuple[Tensor, Tensor]:
    """Status and error, with STAGNATED for the z, within the bounds, that are no solutions: a row of F that is small beside the z it
    belongs to hides its sign from what compares the two, as Fischer's function does, and from the steps that come of that.

    If z were off by a tolerance in each of its numbers, row i of F would be off by Σⱼ |Jᵢⱼ| tolⱼ. In these units z − P(z − F) tells in
    tolerances how far z is off at least. Up to n = 64 Newton's correction with what is held at z tells how far it is off; where its
    matrix is singular it tells nothing.
    """
    converged = status == Status.CONVERGED
    n = z.shape[-1]
    if equations.kind.minimised or not n or finished(~converged):
        return status, error
    with torch.no_grad():
        each = tolerance.each(z)
        linearised = equations.attempt(_linearised, equations, z, each)
        if linearised is None:  # the function is solved without a derivative, and may have none
            return status, error
        F, rows, J = linearised
        in_units = torch.where(F == 0, 0, F / rows)
        off = projected_gradient(in_units, z / each, lower / each, upper / each).abs().amax(-1)
        if J is not None:
            off = off.maximum(_newton(F, J, z, lower, upper, each))
        far = converged & (off > DOUBT)
        return torch.where(far, Status.STAGNATED, status), torch.where(far, off * bound, error)


def _linearised(equations: Equations, z: Tensor, each: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """F at z, what a tolerance in each number of z changes its rows by, (B, n) each, and its Jacobian where that is formed."""
    n = z.shape[-1]
    jacobian = equations.jacobian_of_gradient(z)
    if n > DIAGNOSE_LIMIT or not no_more_than(z.shape[0] * n * n, DIAGNOSE_ENTRIES):
        return jacobian.value, _probed(jacobian, each), None
    J = jacobian.to_dense()
    return jacobian.value, (J.abs() @ each.unsqueeze(-1)).squeeze(-1), J


def _newton(F: Tensor, J: Tensor, z: Tensor, lower: Tensor, upper: Tensor, each: Tensor) -> Tensor:
    """Newton's correction within the bounds, with what is held at z, in tolerances, (B,); 0 where there is none."""
    fixed = torch.stack(held(F, z, lower, upper)).any(0)
    eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    factors = LU().factorize(Dense(torch.where(fixed.unsqueeze(-1), eye, J)))
    ahead = z - factors.solve(torch.where(fixed, 0, F))
    off = ((z - torch.minimum(torch.maximum(ahead, lower), upper)).abs() / each).amax(-1)
    return torch.where(factors.singular | ~off.isfinite(), 0, off)


def _probed(jacobian: Jacobian, each: Tensor) -> Tensor:
    """What generic changes of z by a tolerance in each of its numbers change the rows by, at most, (B, n).

    The changes are of both signs and follow no rule, as differences of neighbours would find one: sin(12.9898 k) · 43758.5453 mod 1.
    """
    n = each.shape[-1]
    k = torch.arange(1, PROBES * n + 1, dtype=each.dtype, device=each.device)
    generic = ((12.9898 * k).sin() * 43758.5453).frac().unflatten(-1, (PROBES, n))
    products = [jacobian.matvec(each * generic[probe]) for probe in range(PROBES)]
    return n**0.5 * torch.stack(products).abs().amax(0)
