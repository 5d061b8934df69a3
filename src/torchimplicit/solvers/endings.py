"""A second look at how a solve has ended, at the best z of each system: each function refines some of the statuses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchimplicit.linear import LU, Cholesky
from torchimplicit.linear.operators import Dense
from torchimplicit.linear.vectors import unpatterned
from torchimplicit.solvers.equations import Equations, Estimate, Solver
from torchimplicit.stopping import Status, measured, rms
from torchimplicit.transforms import finished

# The largest n for which a failed solve is asked whether its Jacobian was singular, and a minimum whether it is one.
DIAGNOSE_LIMIT = 64
DIAGNOSE_ENTRIES = 2**26  # largest number of entries of all Hessians of the batch that are looked at
FLAT = 1e-3  # ‖Jᵀg‖ / (‖J‖ ‖g‖) below which no small step makes g smaller


def gain(
    solver: Solver, equations: Equations, estimate: Callable[..., Estimate | None], z: Tensor, correction: Tensor
) -> Tensor:
    """How much larger than the correction the error of z is, (B,), where corrections are so small that rounding is all that they
    differ by from one step to the next: seen from the correction at a point beside z, at a distance of √eps in a generic direction.
    """
    unit = torch.where((size := rms(z)) > 0, size, 1).unsqueeze(-1)
    d = torch.finfo(z.dtype).eps ** 0.5 * unit * unpatterned(z)
    beside = equations.attempt(solver.init, equations, z + d)
    found = None if beside is None else estimate(z + d, *beside)
    if found is None:
        return torch.ones_like(size)
    change = rms(found.correction - correction)
    return torch.where(change > 0, rms(d) / change, torch.inf).nan_to_num(nan=torch.inf).clamp(min=1)


def stochastic(solver: Solver, equations: Equations, z: Tensor, norm: Tensor, status: Tensor) -> Tensor:
    """Of systems that failed, or whose function has drawn random numbers, those that get another answer at the best z."""
    with torch.no_grad():
        r = solver.init(equations, z)[0]
        change, size = (measured(r) - norm).abs(), norm + measured(z)
    differs = change > torch.finfo(norm.dtype).eps ** 0.5 * size
    return torch.where(norm.isfinite() & differs, Status.STOCHASTIC, status)


def singular(equations: Equations, z: Tensor, norm: Tensor, status: Tensor) -> Tensor:
    """Of systems that ended in NaN or Inf, those whose Jacobian is singular at the best z."""
    with torch.no_grad():
        stuck = (status == Status.NONFINITE) & norm.isfinite()
        if z.shape[-1] <= DIAGNOSE_LIMIT and not finished(~stuck):
            factors = LU().factorize(equations.jacobian(z))
            status = torch.where(stuck & factors.singular, Status.SINGULAR, status)
    return status


def local_minimum(equations: Equations, z0: Tensor, z: Tensor, status: Tensor) -> Tensor:
    """Of roots that came no nearer, those at whose best z the norm of g has a local minimum.

    There Jᵀg is nothing beside ‖J‖ ‖g‖, with the larger ‖J‖ of those at z and at the start: a single equation has J = 0.
    """
    kind = equations.kind
    stuck = status == Status.STAGNATED
    if kind.minimised or kind.near_identity or z.shape[-1] > DIAGNOSE_LIMIT or finished(~stuck):
        return status
    with torch.no_grad():
        linearised = equations.jacobian(z)
        size = torch.linalg.matrix_norm(linearised.to_dense())
        size = size.maximum(torch.linalg.matrix_norm(equations.jacobian(z0).to_dense()).nan_to_num())
        norm = torch.linalg.vector_norm(linearised.value, dim=-1, keepdim=True)
        flat = torch.linalg.vector_norm(linearised.rmatvec(linearised.value / norm), dim=-1) <= FLAT * size
        flat = flat & (norm.squeeze(-1) + size).isfinite()  # otherwise squares have overflowed, and nothing is known
    return torch.where(stuck & flat, Status.LOCAL_MINIMUM, status)


def second_order(
    equations: Equations, z: Tensor, status: Tensor, hessian: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Of the stationary points z of an objective, those with a Hessian that is clearly not positive semidefinite are no minima.

    Asked up to n = 64: Cholesky's factorisation of the Hessian fails there, even shifted by √eps of its norm. Its tensors are
    returned too, of the Hessian itself, for the backward; none where it was not asked for or is not the condition's Jacobian.
    """
    batch, n = z.shape
    if not equations.kind.minimised or not 0 < n <= DIAGNOSE_LIMIT or batch * n * n > DIAGNOSE_ENTRIES:
        return status, ()
    found = status == Status.CONVERGED
    if finished(~found):
        return status, ()
    with torch.no_grad():
        hessian = equations.jacobian(z).to_dense() if hessian is None else hessian
        bounded = equations.kind.bounded
        if bounded:  # an unknown that its bound holds has a row of the identity: the others decide
            eye = torch.eye(n, dtype=hessian.dtype, device=hessian.device)
            held = (hessian == eye).all(-1)
            hessian = torch.where(held.unsqueeze(-2), eye, hessian)
        hessian = (hessian + hessian.mT) / 2
        factors = Cholesky().factorize(Dense(hessian))
        doubtful = found & ~factors.pivots().isfinite().all(-1)
        if not finished(~doubtful):
            size = torch.linalg.matrix_norm(hessian)
            known = doubtful & size.isfinite()
            shift = torch.where(known & (size > 0), torch.finfo(size.dtype).eps ** 0.5 * size, 1)
            shifted = torch.where(known[:, None, None], hessian, 0) + torch.diag_embed(
                shift.unsqueeze(-1).expand(batch, n)
            )
            failed = torch.linalg.cholesky_ex(shifted).info != 0
            status = torch.where(known & failed, Status.SADDLE, status)
        return status, () if bounded else factors.tensors
