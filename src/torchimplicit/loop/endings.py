"""A second look at how a solve has ended, at the best z of each system: each function refines some of the statuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished, no_more_than, occurs, values_hidden
from torchimplicit.condition import held
from torchimplicit.graph.loop import where_needed
from torchimplicit.linear import LU, Cholesky
from torchimplicit.linear.cholesky import clearly_definite, least_norm
from torchimplicit.linear.dense import Dense
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.vectors import unpatterned
from torchimplicit.norms import extent, measured, rms
from torchimplicit.solvers.equations import Equations, Estimate
from torchimplicit.solvers.method import Method
from torchimplicit.status import Status
from torchimplicit.tolerance import ROUNDING, Tolerance

# The largest n for which a failed solve is asked whether its Jacobian was singular, and a minimum whether it is one.
DIAGNOSE_LIMIT = 64
DIAGNOSE_ENTRIES = 2**26  # largest number of entries of all Hessians of the batch that are looked at
COUPLED = 1e3  # in units of eps: a change of g by more is no rounding error
NEAR = 1e-4  # times the largest number of z or of its bounds: how far from its bound may end what the objective presses there
DOUBT = 10  # times the tolerance: an error that a method may have underestimated by
PASSED = 100  # times the slope at an inflection: one beside it that is no rounding error
OFF = 10  # times as far from the start as that is from 0, or as one
LESS = 0.75  # of the gradient at z is left twice as far away, where an objective levels off
FLAT = 1e-3  # ‖Jᵀg‖ / (‖J‖ ‖g‖) below which no small step makes g smaller


def gain(
    solver: Method, equations: Equations, estimate: Callable[..., Estimate | None], z: Tensor, correction: Tensor
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
    change = found.scale * rms(found.correction - correction)
    return torch.where(change > 0, rms(d) / change, torch.inf).nan_to_num(nan=torch.inf).clamp(min=1)


def stochastic(solver: Method, equations: Equations, z: Tensor, norm: Tensor, status: Tensor) -> Tensor:
    """Of systems that failed, or whose function has drawn random numbers, those that get another answer at the best z.

    It may be the others that have moved since the answer before: systems that influence each other are called COUPLED.
    """
    with torch.no_grad():
        r = solver.init(equations, z)[0]
        change, size = (measured(r) - norm).abs(), norm + measured(z)
        failed = status != Status.CONVERGED  # and that may be noise of a generator that is not torch's own
        asked = failed | (not equations.default_generators_untouched)
        differs = asked & norm.isfinite() & (change > torch.finfo(norm.dtype).eps ** 0.5 * size)
        if z.shape[0] > 1 and not values_hidden() and occurs(doubtful := differs | failed):
            coupled, same = _coupled(equations, z, int(doubtful.to(torch.int64).argmax()), occurs(differs))
            if coupled:
                return torch.where(doubtful & same, Status.COUPLED, torch.where(differs, Status.STOCHASTIC, status))
    return torch.where(differs, Status.STOCHASTIC, status)


def coupled(equations: Equations, z: Tensor, norm: Tensor, status: Tensor, strayed: Tensor) -> Tensor:
    """COUPLED where systems that had converged have not stayed where they were, or are not solved by the z of all together, because
    they depend on each other."""
    with torch.no_grad():
        depends, same = _coupled(equations, z, int(strayed.to(torch.int64).argmax()), noisy=False)
        if not depends:
            return status
        changed = (measured(equations.residual(z)) - norm).abs()
        differs = changed > torch.finfo(norm.dtype).eps ** 0.5 * (norm + measured(z))
        return torch.where((strayed | differs) & same & (status == Status.CONVERGED), Status.COUPLED, status)


def _coupled(equations: Equations, z: Tensor, row: int, noisy: bool) -> tuple[bool, Tensor]:
    """Whether g of one system depends on the z of the others, and the systems (B,) whose g is the same when it is asked twice: all,
    unless it has drawn random numbers, or is known to be ``noisy``."""
    value = equations.residual(z)
    same = torch.ones(z.shape[0], dtype=torch.bool, device=z.device)
    if noisy or not equations.default_generators_untouched:
        same = (value == equations.residual(z)).all(-1)
    value = value[row].clone()
    moves = torch.where((size := rms(z)) > 0, size, 1)
    moves[row] = 0
    moved = equations.attempt(equations.residual, torch.addcmul(z, moves.unsqueeze(-1), unpatterned(z)))
    if moved is None or not bool(same[row] & (value + moved[row]).isfinite().all()):
        return False, same
    noise = COUPLED * torch.finfo(z.dtype).eps * (measured(value.unsqueeze(0)) + measured(z[row : row + 1]))
    return not bool((moved[row] - value).abs().amax() <= noise), same


def jagged(equations: Equations, z: Tensor) -> Tensor:
    """Whether g beside z, at a distance of √eps in a generic direction, is something else than its Jacobian at z says, (B,)."""
    with torch.no_grad():
        unit = torch.where((size := measured(z)) > 0, size, 1).unsqueeze(-1)
        d = torch.finfo(z.dtype).eps ** 0.5 * unit * unpatterned(z)
        jacobian = equations.jacobian(z)
        expected, found = jacobian.matvec(d), equations.attempt(equations.residual, z + d)
        if found is None:
            return torch.zeros_like(size, dtype=torch.bool)
        return ~(measured(found - jacobian.value - expected) <= measured(expected) / 2)


def singular(equations: Equations, z0: Tensor, z: Tensor, norm: Tensor, status: Tensor) -> Tensor:
    """Of systems that ended in NaN or Inf, those whose Jacobian is singular at the best z: there are no numbers for its inverse, or,
    of roots, ‖g‖ is so flat there that steps led out of all bounds."""
    stuck = (status == Status.NONFINITE) & norm.isfinite()
    if z.shape[-1] > DIAGNOSE_LIMIT or finished(~stuck):
        return status
    with torch.no_grad():
        jacobian = equations.jacobian(z)
        none = LU().factorize(jacobian).singular
        if not (equations.kind.minimised or equations.kind.near_identity or finished(~stuck | none)):
            none = none | _flat(equations, z0, jacobian)
    return torch.where(stuck & none, Status.SINGULAR, status)


def local_minimum(equations: Equations, z0: Tensor, z: Tensor, status: Tensor) -> Tensor:
    """Of roots that came no nearer, those at whose best z the norm of g has a local minimum."""
    kind = equations.kind
    stuck = status == Status.STAGNATED
    if kind.minimised or kind.near_identity or z.shape[-1] > DIAGNOSE_LIMIT or finished(~stuck):
        return status
    with torch.no_grad():
        return torch.where(stuck & _flat(equations, z0, equations.jacobian(z)), Status.LOCAL_MINIMUM, status)


def _flat(equations: Equations, z0: Tensor, linearised: Jacobian) -> Tensor:
    """Whether Jᵀg is nothing beside ‖J‖ ‖g‖, (B,), with the larger ‖J‖ of those at z and at the start: a single equation has J = 0."""
    size = torch.linalg.matrix_norm(linearised.to_dense())
    size = size.maximum(torch.linalg.matrix_norm(equations.jacobian(z0).to_dense()).nan_to_num())
    norm = torch.linalg.vector_norm(linearised.value, dim=-1, keepdim=True)
    flat = torch.linalg.vector_norm(linearised.rmatvec(linearised.value / norm), dim=-1) <= FLAT * size
    return flat & (norm.squeeze(-1) + size).isfinite()  # otherwise squares have overflowed, and nothing is known


def at_infinity(equations: Equations, z0: Tensor, z: Tensor, status: Tensor) -> Tensor:
    """Of minima that were not found, DIVERGED where z is far from its start, and twice as far the objective is no higher and its
    gradient smaller: it levels off, and the only minimum is at infinity."""
    failed = (status == Status.STAGNATED) | (status == Status.MAX_STEPS)
    if not equations.kind.minimised or equations.kind.bounded or finished(~failed):
        return status
    with torch.no_grad():
        failed = failed & (measured(z - z0) > OFF * extent(z0))
        here = equations.attempt(equations.objective_and_residual, z)
        there = equations.attempt(equations.objective_and_residual, z + (z - z0))
        if here is None or there is None:
            return status
        (low, gradient), (beyond, further) = here, there
        levels_off = (beyond <= low) & (measured(further) <= LESS * measured(gradient))
    return torch.where(failed & levels_off, Status.DIVERGED, status)


def at_bounds(equations: Equations, z: Tensor, lower: Tensor, upper: Tensor, tolerance: Tolerance) -> Tensor:
    """z with those numbers exactly at their bounds that have ended near and are pressed there by the gradient: methods that approach
    a bound from within never arrive, and others do but for rounding."""
    if not z.shape[-1]:
        return z
    with torch.no_grad():
        size = torch.stack([v.abs().where(v.isfinite(), 0) for v in (z, lower, upper)]).amax((0, -1)).unsqueeze(-1)
        near = NEAR * size if equations.kind.minimised else DOUBT * tolerance.each(z)
        near = torch.where(near < torch.inf, near, 0)  # of a multiplier no error is known: its method has decided
        there = torch.where(z - lower <= near, lower, torch.where(upper - z <= near, upper, z))
        if finished(there == z):
            return z
        found = equations.attempt(equations.gradient, there)
        if found is None:  # the function ends where its bounds do
            return z
        pressed = torch.stack(held(found, there, lower, upper)).any(0)
        if not finished(
            ~(pressed & (there != z))
        ):  # one that is free, and only near, is pressed by its neighbours' move alone
            here = equations.gradient(z)
            pressed = pressed & ((here * found.sign() > found.abs() / 2) | (there == z))
        arrives = (pressed & (there != z)) | (z < lower) | (z > upper)
    return torch.where(arrives, torch.where(there == lower, lower, upper), z)


def _of_free(gradient: Tensor, hessian: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient and the Hessian of the unknowns that are free, with a multiple of the identity for those that are held."""
    both = held.unsqueeze(-1) | held.unsqueeze(-2)
    hessian = torch.where(both, 0, hessian)
    unit = hessian.abs().amax((-2, -1))
    diagonal = torch.where(held, torch.where(unit > 0, unit, 1).unsqueeze(-1), 0)
    return torch.where(held, 0, gradient), hessian + torch.diag_embed(diagonal)


def _passed(equations: Equations, z: Tensor, gradient: Tensor, correction: Tensor, distance: Tensor) -> Tensor:
    """Whether the objective goes on falling beyond z, (B,), on the line along which Newton's method has come: its slope at a distance
    is of the same sign on both sides, and not that of z itself, which may be rounding."""
    longest = correction.abs().amax(-1, keepdim=True)
    d = correction / torch.where(longest > 0, longest, 1)
    moves = distance.unsqueeze(-1) * d
    beside = [equations.attempt(equations.residual, there) for there in (z - moves, z + moves)]
    if beside[0] is None or beside[1] is None:
        return torch.zeros_like(distance, dtype=torch.bool)
    before, after, here = ((slope * d).sum(-1) for slope in (beside[0], beside[1], gradient))
    least = before.abs().minimum(after.abs())
    return (before * after.sign() > 0) & (least > PASSED * here.abs()) & least.isfinite()


class Minima(NamedTuple):
    """What the Hessians say of stationary points.

    status : with SADDLE where one is no minimum, and CONVERGED where it is one within tolerance.
    error : the largest number of Newton's correction with the Hessian, where that was looked at; else as it was.
    excess : by what factor that is more than the tolerance, where the method itself had said that it had arrived; else 0.
    polish : that correction, where z is to be moved by it, for it costs nothing any more and makes z as good as a step of Newton's
        method does, within the tolerance; else 0. None: nowhere.
    factors : the tensors of the Cholesky factors of the Hessians, for the backward; none where they were not asked for or are not
        those of the condition's Jacobian.
    """

    status: Tensor
    error: Tensor
    excess: Tensor
    polish: Tensor | None
    factors: tuple[Tensor, ...]


def second_order(
    equations: Equations,
    z: Tensor,
    status: Tensor,
    error: Tensor,
    tolerance: Tolerance,
    known: tuple[Tensor, Tensor] | None = None,
    bounds: tuple[Tensor, Tensor] | None = None,
    start: tuple[Tensor, Tensor] | None = None,
    slow: Tensor | None = None,
) -> Minima:
    """A second look at the stationary points z of an objective, up to n = 64: is the Hessian positive semidefinite, and is the error,
    as Newton's correction with it has it, no larger than the tolerance?

    Cholesky's factorisation of a Hessian with a clearly negative eigenvalue fails, even shifted by √eps of its norm. What has stagnated
    is looked at too: a method without the Hessian may not see that it has arrived. ``known`` : the gradient and the Hessian at z.
    ``start`` : z and the gradient where the solve began. ``slow`` : where Newton's corrections became smaller as those do at a
    stationary point of higher order, which may be an inflection: those are looked at from both sides.
    """
    batch, n = z.shape
    none = torch.zeros_like(error)
    if not equations.kind.minimised or not 0 < n <= DIAGNOSE_LIMIT or not no_more_than(batch * n * n, DIAGNOSE_ENTRIES):
        return Minima(status, error, none, None, ())
    found = (status == Status.CONVERGED) | (status == Status.STAGNATED) | (status == Status.MAX_STEPS)
    if finished(~found):
        return Minima(status, error, none, None, ())
    polished = known is None and not torch.is_grad_enabled()  # of a recorded z the derivative would be that of another
    with torch.no_grad():
        if known is None:
            jacobian = equations.jacobian(z) if bounds is None else equations.objective_and_jacobian(z)[1]
            known = jacobian.value, jacobian.to_dense()
        gradient, hessian = known
        if bounds is not None:  # what is held has come to its place: the others decide
            lower, upper = bounds
            gradient, hessian = _of_free(gradient, hessian, torch.stack(held(gradient, z, lower, upper)).any(0))
        hessian = (hessian + hessian.mT) / 2
        factors = Cholesky().factorize(Dense(hessian))
        L, d, _ = factors.tensors
        factorised = factors.pivots().isfinite().all(-1)
        definite = factorised & clearly_definite(L, d.unsqueeze(-1) * hessian * d.unsqueeze(-2))
        doubtful = found & ~factorised
        if not finished(~doubtful):
            unit = hessian.abs().amax((-2, -1))  # squares of what is small may vanish
            unit = torch.where(unit > 0, unit, 1)
            size = torch.linalg.matrix_norm(hessian / unit[:, None, None]) * unit
            finite = doubtful & size.isfinite()
            shift = torch.where(finite & (size > 0), torch.finfo(size.dtype).eps ** 0.5 * size, 1)
            shifted = torch.where(finite[:, None, None], hessian, 0) + torch.diag_embed(
                shift.unsqueeze(-1).expand(batch, n)
            )
            failed = torch.linalg.cholesky_ex(shifted).info != 0
            status = torch.where(finite & failed & (status == Status.CONVERGED), Status.SADDLE, status)
        correction, inside = factors.solve(gradient), torch.ones_like(found)
        shortest, ran_off = where_needed(
            ~definite,
            lambda hessian, gradient, z, *start: least_norm(hessian, gradient, z, start or None),
            (correction, torch.zeros_like(definite)),
            (hessian, gradient, z, *(start or ())),
        )
        correction = torch.where(definite.unsqueeze(-1), correction, shortest)
        status = torch.where(doubtful & ran_off, Status.DIVERGED, status)
        if bounds is not None:
            # Where it leads beyond a bound, something is not yet held that will be: z is off by that much at least.
            ahead = z - correction
            within = (lower <= ahead) & (ahead <= upper)
            correction, inside = torch.where(within, correction, z - ahead.clamp(lower, upper)), within.all(-1)
        newton, bound = tolerance.largest(correction, z)
        seen = found & newton.isfinite()
        status = torch.where(seen & inside & (newton <= bound), Status.CONVERGED, status)
        far = seen & (newton > DOUBT * bound) & (status == Status.CONVERGED)
        status = torch.where(far, Status.STAGNATED, status)
        excess = torch.where(far, newton / bound, 0)
        if bounds is None and slow is not None and occurs(slow := slow & seen & (status == Status.CONVERGED)):
            passed = _passed(
                equations,
                z,
                gradient,
                correction,
                bound / max(tolerance.rtol, ROUNDING * torch.finfo(z.dtype).eps) ** 0.5,
            )
            status = torch.where(slow & passed, Status.SADDLE, status)
        if bounds is not None or not polished:
            factors_of_condition = factors.tensors if bounds is None else ()
            return Minima(status, torch.where(seen, newton, error), excess, None, factors_of_condition)
        moved = seen & (status == Status.CONVERGED)
        error = torch.where(seen, torch.where(moved, newton.minimum(bound), newton), error)
        return Minima(status, error, excess, torch.where(moved.unsqueeze(-1), correction, 0), factors.tensors)
