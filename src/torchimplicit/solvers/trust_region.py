"""What the trust-region methods for minima share: a step without matrices, whether it is taken, and how far the next may go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished, tracing, values_hidden
from torchimplicit.graph.loop import Operands, settle
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.large import Large
from torchimplicit.linear.masks import divide
from torchimplicit.norms import rounding
from torchimplicit.solvers.descent import dot
from torchimplicit.solvers.equations import Equations
from torchimplicit.solvers.trial import Trial, TrialMethod

Plan = TypeVar("Plan")
Objective = tuple[Tensor, Jacobian]  # its value, (B,), and its Hessian, which holds the gradient
Seen = Trial[Plan, Objective]

FIRST = 10  # radius over the size of z; MINPACK advises 0.1 to 100, and 3 and 10 lead to all minima of Moré, Garbow and Hillstrom
REFUSALS = 3  # steps by factors in turn that were of no use, after which none is asked for
ACCEPTED = 1e-4  # the part of the predicted decrease that a step must bring


class Downhill(TrialMethod[Plan, Objective, Objective]):
    """A method that goes downhill on an objective, with its Hessian at trial points."""

    def look(self, equations: Equations, z: Tensor) -> Objective:
        return equations.objective_and_jacobian(z)


def first_radius(radius: Tensor, z: Tensor) -> Tensor:
    """A radius, where a step needs one and there was none: ten times the size of z, or ten."""
    size = torch.linalg.vector_norm(z.detach(), dim=-1)
    return torch.where(radius.isfinite(), radius, FIRST * size.clamp(min=1))


def nearer(radius: Tensor, s: Tensor) -> Tensor:
    """The radius after a step s that leads to where nothing is known."""
    return radius.minimum(torch.linalg.vector_norm(s.detach(), dim=-1)) / 4


def judge(
    values: tuple[Tensor, Tensor], gradients: tuple[Tensor, Tensor], s: Tensor, predicted: Tensor, radius: Tensor
) -> tuple[Tensor, Tensor]:
    """Which systems take their step s, (B,), and the next radius of each, from the objective and its gradient before and after."""
    value, value_new = (value.detach() for value in values)
    decrease = value - value_new
    plain = (decrease > torch.maximum(rounding(value), predicted / 4)) & (predicted > 0) & (radius == torch.inf)
    size = gradients[1].detach().sum(-1) + decrease
    if finished(plain & (size.abs() < torch.inf)):  # the common case: Newton's steps near the minimum
        return plain, radius
    return judge_all(values, gradients, s, predicted, radius)


def judge_all(
    values: tuple[Tensor, Tensor], gradients: tuple[Tensor, Tensor], s: Tensor, predicted: Tensor, radius: Tensor
) -> tuple[Tensor, Tensor]:
    """The same for systems in whatever case, without a look at any value.

    Where rounding hides the decrease of the objective it is read off the gradients: −(g + g₊)ᵀs / 2, the trapezoidal rule.
    Source: Nocedal and Wright, Numerical Optimization (2006), algorithm 4.1; Conn, Gould and Toint, Trust-Region Methods (2000),
    section 17.4 (rounding).
    """
    value, value_new = (value.detach() for value in values)
    r, r_new = (r.detach() for r in gradients)
    decrease = value - value_new
    hidden = decrease.abs() <= rounding(value)
    decrease = torch.where(hidden, -dot(r + r_new, s) / 2, decrease)
    # A step from where the gradient is exactly 0 leads nowhere, but has a derivative.
    ratio = torch.where(predicted > 0, decrease / predicted, torch.where((r == 0).all(-1), 1, -1))
    ratio = torch.where(r_new.isfinite().all(-1) & ratio.isfinite(), ratio, -1)
    length = torch.linalg.vector_norm(s, dim=-1)
    at_the_edge = length > 0.8 * radius
    radius = torch.where((ratio > 0.75) & at_the_edge, 2 * length, radius)
    return ratio > ACCEPTED, torch.where(ratio < 0.25, length / 4, radius)


def by_factors(
    hessian: Jacobian, r: Tensor, radius: Tensor, eta: Tensor, max_steps: int
) -> tuple[Tensor, Tensor] | None:
    """The step s to the minimum of the parabolas, H s = −r, where that lies in the ball for every system, and the decrease that they
    predict: by factors of what is known of Hessians like this (:class:`torchimplicit.linear.Large`). None: nothing is known, or there
    is no such step.
    """
    known = hessian.memory
    if known is None or torch.is_grad_enabled() or tracing() or values_hidden() or known.refused > REFUSALS:
        return None
    if known.pattern(hessian) is None:
        return None
    found = Large().factorize(hessian).iterate(-r, rtol=eta, max_steps=max_steps)
    s = found.x
    curvature = dot(s, hessian.rmatvec(s))
    predicted = -dot(r, s) - curvature / 2
    minimum = (found.converged & (curvature > 0) & (predicted > 0)) | (r == 0).all(-1)
    if known.sign == 1 and finished(minimum & (torch.linalg.vector_norm(s, dim=-1) <= radius)):
        known.refused = 0
        return s, predicted
    known.refused += 1
    known.sign = None  # of the next Hessian, which may be definite
    return None


def steihaug(
    product: Callable[..., Tensor],
    r: Tensor,
    radius: Tensor,
    eta: Tensor,
    z: Tensor,
    max_steps: int,
    operands: Operands,
    others: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Conjugate gradients on H s = −r from 0, until ‖H s + r‖ ≤ η ‖r‖, to the edge of the trust region at most.

    A curvature that is rounding error beside the largest that was met is none: the step goes to the edge along it.
    ``product(p, *others)`` is H p, by an operator with these ``operands``.

    Returns the step s, the decrease of the objective that the parabola predicts for it, the radius it was found for, and whether s
    goes to the edge along a direction without any curvature.
    Source: Steihaug, The conjugate gradient method and trust regions in large scale optimization, SIAM J. Numer. Anal. 20 (1983).
    """
    gamma = dot(r, r)
    target = (eta * gamma.detach().sqrt()).square()
    going = gamma.detach() > 0
    p = torch.where(going.unsqueeze(-1), -r, 0)
    zero, nobody = torch.zeros_like(r), torch.zeros_like(going)
    state: tuple[Tensor, ...] = (zero, zero, r, gamma, p, torch.zeros_like(gamma.detach()), nobody, radius, ~going)
    if not finished(~going):
        step = partial(_conjugate, product)
        state = settle(step, state, max_steps, (target, z.detach(), *others), operands)
    s, Hs, *_, flat, radius, _ = state
    return s, (-dot(r, s) - dot(s, Hs) / 2).detach(), radius, flat


def _conjugate(
    product: Callable[..., Tensor], state: tuple[Tensor, ...], target: Tensor, z: Tensor, *others: Tensor
) -> tuple[Tensor, ...]:
    """One step of :func:`steihaug`, for those systems that are not done."""
    s, Hs, residual, gamma, p, steepest, flat, radius, done = state
    Hp = product(p, *others)
    curvature = dot(p, Hp)
    squared = dot(p, p).detach()
    steepest = steepest.maximum(divide(curvature.detach().abs(), squared, squared > 0).nan_to_num(0, 0, 0))
    none = torch.finfo(p.dtype).eps * steepest * squared
    bends = ~done & (curvature.detach() > none)
    flat = flat | (~done & ~bends & (curvature.detach() >= -none))
    needed = ~done & ~bends & radius.isinf()
    radius = torch.where(needed, first_radius(radius, z).maximum(2 * dot(s, s).detach().sqrt()), radius)
    alpha = divide(gamma, curvature, bends)
    length = torch.linalg.vector_norm((s + alpha.unsqueeze(-1) * p).detach(), dim=-1)
    leaves = ~done & (~bends | (length > radius))
    alpha = torch.where(leaves, _to_the_edge(s, p, radius), alpha)
    alpha = torch.where(done, 0, alpha).unsqueeze(-1)
    s, Hs, residual = s + alpha * p, Hs + alpha * Hp, residual + alpha * Hp
    gamma_new = dot(residual, residual)
    done = done | leaves | ~(gamma_new.detach() > target)
    beta = divide(gamma_new, gamma, ~done)
    p = torch.where(done.unsqueeze(-1), 0, -residual + beta.unsqueeze(-1) * p)
    return s, Hs, residual, gamma_new, p, steepest, flat, radius, done


def _to_the_edge(s: Tensor, p: Tensor, radius: Tensor) -> Tensor:
    """The τ ≥ 0 with ‖s + τ p‖ = Δ."""
    s, p = s.detach(), p.detach()
    a, b, c = dot(p, p), dot(s, p), (radius.square() - dot(s, s)).clamp(min=0)
    usable = (a > 0) & c.isfinite()
    return divide(c, b + (b.square() + a * c).sqrt(), usable & (b.square() + a * c > 0))
