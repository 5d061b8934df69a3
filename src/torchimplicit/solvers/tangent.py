"""The linear model of the numbers whose squares are summed, r(z + p) ≈ r + J p, reduced to a triangle."""

from __future__ import annotations

from abc import ABC
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.triangularise import full_rank, solve_triangle, triangularise
from torchimplicit.linear.vectors import times
from torchimplicit.norms import rounding
from torchimplicit.solvers.equations import Equations, Estimate
from torchimplicit.solvers.trial import Taken, Trial, TrialMethod

Plan = TypeVar("Plan")

RANK = 16  # in units of n eps: singular values smaller than that are 0
ACCEPTED = 1e-4  # the part of the predicted decrease that a step must bring


class Tangent(NamedTuple):
    """‖r + J p‖² = ‖R p + c‖² + a constant.

    R, c : of the QR factorisation of J: its triangle, (B, n, n), and Qᵀr, (B, n).
    gradient : Jᵀr, (B, n).
    newton : R⁻¹c, (B, n): the step to the minimum of the model is −newton, the shortest of several.
    gain : how many times as far it is to the solution, (B,): for a fit by how the curvature along the last step differed from the
        model's; for a root infinite where no step makes the model vanish.
    norm : ‖r(z)‖, (B,), without a gradient, and so
    columns : the norms of the columns of J, (B, n);
    terms : Σᵢ |Jᵢⱼ rᵢ|, what the gradient would be if nothing in its sums cancelled, (B, n);
    doubt : what rounding the unknowns may change the gradient by, eps |JᵀJ| |z|, (B, n).
    value, jacobian : r(z), (B, m), and J, (B, m, n), for those who want to keep them.
    """

    R: Tensor
    c: Tensor
    gradient: Tensor
    newton: Tensor
    gain: Tensor
    norm: Tensor
    columns: Tensor
    terms: Tensor
    doubt: Tensor
    value: Tensor | None = None
    jacobian: Tensor | None = None

    @staticmethod
    def of(linearised: Jacobian, z: Tensor, root: bool, keep: bool = False) -> Tangent:
        """From r linearised at z, whose squares are to become smallest, or, of a ``root``, zero."""
        value, jacobian = linearised.value, linearised.to_dense()
        R, c = triangularise(jacobian, value)
        gradient = times(jacobian.mT, value)
        norm, columns = torch.linalg.vector_norm(value.detach(), dim=-1), R.detach().square().sum(-2).sqrt()
        with torch.no_grad():
            terms = times(jacobian.mT.abs(), value.abs())
            doubt = torch.finfo(z.dtype).eps * times((R.mT @ R).abs(), z.abs())
        kept = (value, jacobian) if keep else ()
        newton, gain = minimiser(R, c, columns), torch.ones_like(norm)
        if root:
            vanishes = (
                torch.linalg.vector_norm(times(R, newton), dim=-1) >= (1 - torch.finfo(z.dtype).eps ** 0.5) * norm
            )
            known = (norm > 0) | (value == 0).all(-1)  # its squares have not vanished
            gain = torch.where(vanishes & known, gain, torch.inf)
        return Tangent(R, c, gradient, newton, gain, norm, columns, terms, doubt, *kept)

    @property
    def regular(self) -> Tensor:
        """Whether J has full rank beyond rounding, (B,)."""
        return full_rank(self.R)

    def of_rows(self, rows: Tensor) -> Tangent:
        """This model for some systems."""
        parts: Any = (None if part is None else part[rows] for part in self)
        return Tangent(*parts)

    def chosen(self, taken: Taken, other: Tangent) -> Tangent:
        """This model where a step was taken, the other elsewhere."""
        pairs: Any = (None if a is None or b is None else taken(a, b) for a, b in zip(self, other, strict=True))
        return Tangent(*pairs)


Seen = Trial[Plan, Jacobian]
Found = tuple[Tangent, Tensor]  # the model at a trial point, and the residual there


class OnTangent(TrialMethod[Plan, Jacobian, Found], ABC):
    """A method whose trial points come from the linear model at z, which is the ``tangent`` of its state."""

    def start(self, equations: Equations, z: Tensor, keep: bool = False) -> tuple[Tensor, Tangent]:
        """The residual and the model at z."""
        if equations.kind.bounded and equations.kind.minimised:
            raise TypeError(f"{type(self).__name__} does not know of bounds. Use 'projected_newton', the default.")
        linearised = self.look(equations, z)
        tangent = Tangent.of(linearised, z, not equations.kind.minimised, keep)
        return condition(equations, tangent, linearised.value), tangent

    def look(self, equations: Equations, z: Tensor) -> Jacobian:
        """r linearised there. (An objective that is no sum of squares is refused where it is evaluated.)"""
        return equations.jacobian_of_squares(z)

    def compared(self, trial: Seen[Plan], step: Tensor, tangent: Tangent) -> tuple[Found, Tensor]:
        """The model and the residual at the trial point, and the decrease of ‖r‖², relative to it, (B,): see :func:`compare`."""
        new, decrease = compare(tangent, trial.there, trial.z, step, not trial.equations.kind.minimised)
        return (new, condition(trial.equations, new, trial.there.value)), decrease

    def arrive(self, z: Tensor, taken: Taken, trial: Seen[Plan], found: Found, state: Any) -> tuple[Tensor, Any]:
        tangent, r = found
        return taken(r, trial.r), self.moved(tangent.chosen(taken, state.tangent), taken, state)

    def moved(self, tangent: Tangent, taken: Taken, state: Any) -> Any:
        """The state with the model at the next z."""
        return state._replace(tangent=tangent)

    def merit(self, state: Any) -> Tensor:
        """Half of the sum of squares at z, (B,)."""
        norm: Tensor = state.tangent.norm
        return norm.square() / 2

    def estimate(self, z: Tensor, r: Tensor, state: Any) -> Estimate:
        """The step to the minimum of the model, which is Newton's for a root, and what the curvature of a fit makes of it."""
        tangent: Tangent = state.tangent
        return Estimate(tangent.newton, 0.0, tangent.gain, complete=True)


def condition(equations: Equations, tangent: Tangent, value: Tensor) -> Tensor:
    """What vanishes at the solution, (B, n): r itself, ``value``, for a root, Jᵀr for a fit."""
    return tangent.gradient if equations.kind.sums_squares else value


def first_radius(tangent: Tangent, scale: Tensor, z: Tensor, factor: float) -> Tensor:
    """Of a trust region in scaled unknowns, (B,): ``factor`` times as long as z, and no shorter than the first step to the minimum of
    the model, for a start at or near 0 says nothing of how far it is to go."""
    newton = torch.linalg.vector_norm(scale * tangent.newton.detach(), dim=-1)
    return (factor * torch.linalg.vector_norm(scale * z.detach(), dim=-1)).fmax(newton)


def minimiser(R: Tensor, c: Tensor, columns: Tensor) -> Tensor:
    """x with R x = c; where R has not full rank, the one of the best that is shortest in units in which its columns have norm one."""
    x, regular = solve_triangle(R, c), full_rank(R)
    if finished(regular):
        return x
    finite = R.detach().isfinite().flatten(1).all(-1)
    unit = torch.where((columns > 0) & columns.isfinite(), columns, 1)
    scaled = torch.where(finite[:, None, None], R / unit.unsqueeze(-2), 0)
    inverse = torch.linalg.pinv(scaled.detach(), rtol=RANK * R.shape[-1] * torch.finfo(R.dtype).eps)
    shortest = times(inverse, c) / unit
    return torch.where(regular.unsqueeze(-1), x, torch.where(finite.unsqueeze(-1), shortest, torch.nan))


def compare(old: Tangent, linearised: Jacobian, z: Tensor, step: Tensor, root: bool) -> tuple[Tangent, Tensor]:
    """The model at z + step, and the decrease of ‖r‖², relative to it, (B,): −∞ where r or J is not finite there.

    Where rounding hides the decrease, it is read off the slopes at both ends, to which rounding may have done no more than it
    can. J is not looked at where no system has come lower.
    """
    norm, norm_new = old.norm, torch.linalg.vector_norm(linearised.value.detach(), dim=-1)
    decrease = 1 - (norm_new / norm).square()
    with torch.no_grad():
        rounded = torch.finfo(z.dtype).eps * (old.terms / norm.unsqueeze(-1) * z.abs()).sum(-1) / norm
        hidden = rounding(torch.ones_like(norm)) + 2 * rounded
    if finished(~(decrease >= -hidden)):
        return old, torch.where(decrease.isfinite(), decrease, -torch.inf)
    new = Tangent.of(linearised, z + step, root, keep=old.jacobian is not None)
    with torch.no_grad():
        scaled = step / norm.unsqueeze(-1)
        slopes = (2 * old.doubt * scaled.abs() - (old.gradient + new.gradient) * scaled).sum(-1) / norm
        decrease = torch.where(decrease.abs() <= hidden, slopes, decrease)
        # ‖J p‖² / pᵀ H p, with H p from the gradients at both ends, unless that is rounding.
        bend = ((new.gradient - old.gradient) * scaled).sum(-1) / norm
        shown = bend.abs() > 2 * (old.doubt * scaled.abs()).sum(-1) / norm
        gain = times(old.R, scaled).square().sum(-1) / bend
        gain = torch.where(bend > 0, gain.clamp(min=1), torch.inf)
        if not root:
            new = new._replace(gain=torch.where(shown, gain, old.gain))
        return new, torch.where(new.gradient.isfinite().all(-1) & decrease.isfinite(), decrease, -torch.inf)
