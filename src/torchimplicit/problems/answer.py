"""Whether to believe an answer that a solver of somebody else's has given: by the Newton correction of the condition there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from torchimplicit.linear import LU, Auto
from torchimplicit.linear.factors import Factors
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.vectors import unpatterned
from torchimplicit.loop.solve import SearchResult
from torchimplicit.norms import measured, rms
from torchimplicit.solvers.equations import Equations
from torchimplicit.status import Status
from torchimplicit.tolerance import Tolerance

ASSUMED = 1e-4  # relative error that SciPy's minimisers, say, leave at their own defaults
LOOSE = 1e-2  # relative residual of an iterative solution: only the size of an error is wanted
AROUND = 16  # at so many corrections from an answer the condition is asked whether it is as its Jacobian says
LINEAR = 4  # factor by which it may differ there


def tolerance_of_answers(rtol: float | None, atol: float | None, dtype: torch.dtype) -> Tolerance:
    """That of a solver of which nothing is known: it works to a tolerance of its own."""
    given = Tolerance.of(rtol, atol, dtype)
    rtol = max(given.rtol, ASSUMED) if rtol is None else given.rtol
    return replace(given, rtol=rtol, atol=torch.finfo(dtype).eps ** 0.75 if atol is None else given.atol)


def judged(equations: Equations, z: Tensor, widths: tuple[int, ...], tolerance: Tolerance) -> SearchResult:
    """The answers z (B, n) with their statuses, by the Newton correction J⁻¹g(z), which says how far they are off.

    ``widths`` : how many numbers of a system each leaf of z holds. Up to n = 64 the factors of J are left for the backward. There
    z is also asked whether J is that of a root: J must be regular, and g a little beside z must be as J says, which it is not at a
    pole or a jump, nor next to a multiple root.
    Source: Deuflhard, Newton Methods for Nonlinear Problems (2011), section 2.1 (affine covariance).
    """
    jacobian = equations.jacobian(z)
    g = jacobian.value
    factors = LU().factorize(jacobian) if z.shape[-1] <= Auto.dense_limit else None
    exact = (g == 0).all(-1)  # also where J is singular
    correction = _solved(jacobian) if factors is None else factors.solve(g).nan_to_num(torch.inf, torch.inf, -torch.inf)
    correction = torch.where(exact.unsqueeze(-1), 0, correction)
    error, bound = tolerance.of_leaves(widths).largest(correction, z)
    status = torch.where(error <= bound, Status.CONVERGED, Status.STAGNATED)
    if factors is not None:
        scale = _of_leaves(rms, z, widths)
        step = AROUND * _of_leaves(_largest, correction, widths)
        step = step.maximum(torch.finfo(z.dtype).eps ** (1 / 3) * torch.where(scale > 0, scale, rms(z).unsqueeze(-1)))
        status = torch.where(exact, status, _as_linearised(equations, z, g, factors, step, status))
    finite = (g.sum(-1) + z.sum(-1)).isfinite()
    status = torch.where(finite, status, Status.NONFINITE)
    error = torch.where(finite, error, torch.nan)
    inverse = () if factors is None else factors.tensors
    return SearchResult(z, status, torch.zeros_like(status), measured(g), error, bound, inverse)


def _as_linearised(
    equations: Equations, z: Tensor, g: Tensor, factors: Factors, step: Tensor, status: Tensor
) -> Tensor:
    """The statuses, after a look at g by about ``step`` (B, n) beside z: how far is that, by the factors of J?"""
    with torch.no_grad():
        beside = equations.attempt(equations.residual, z + step * unpatterned(z))
    if beside is not None:
        seen = _largest(factors.solve(beside - g) / step)
        converged = status == Status.CONVERGED
        status = torch.where(converged & (seen > 2 * LINEAR), Status.SINGULAR, status)
        status = torch.where(converged & (seen < 1 / LINEAR), Status.STAGNATED, status)
    return torch.where(factors.singular, Status.SINGULAR, status)


def _solved(jacobian: Jacobian) -> Tensor:
    """J⁻¹g as far as an estimate needs it; infinite where it is not found."""
    result = Auto().factorize(jacobian).iterate(jacobian.value, rtol=LOOSE)
    return torch.where(result.converged.unsqueeze(-1), result.x, torch.inf)


def _of_leaves(norm: Callable[[Tensor], Tensor], v: Tensor, widths: tuple[int, ...]) -> Tensor:
    """The norm of each leaf of v, in the places (B, n) of all its numbers."""
    return torch.cat([norm(leaf).unsqueeze(-1).expand(leaf.shape) for leaf in v.split(widths, -1)], -1)


def _largest(v: Tensor) -> Tensor:
    return v.abs().amax(-1) if v.shape[-1] else v.new_zeros(v.shape[:-1])
