"""The linear model of the numbers whose squares are summed, r(z + p) ≈ r + J p, reduced to a triangle."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.triangular import apply, full_rank, solve_triangle, triangularise
from torchimplicit.norms import rounding
from torchimplicit.solvers.equations import Equations, Estimate

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
        gradient = apply(jacobian.mT, value)
        norm, columns = torch.linalg.vector_norm(value.detach(), dim=-1), R.detach().square().sum(-2).sqrt()
        with torch.no_grad():
            terms = apply(jacobian.mT.abs(), value.abs())
            doubt = torch.finfo(z.dtype).eps * apply((R.mT @ R).abs(), z.abs())
        kept = (value, jacobian) if keep else ()
        newton, gain = minimiser(R, c, columns), torch.ones_like(norm)
        if root:
            vanishes = (
                torch.linalg.vector_norm(apply(R, newton), dim=-1) >= (1 - torch.finfo(z.dtype).eps ** 0.5) * norm
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

    def where(self, rows: Tensor, other: Tangent) -> Tangent:
        """This model in those rows, the other in the rest."""

        def choose(new: Tensor | None, old: Tensor | None) -> Any:
            return (
                None if new is None or old is None else torch.where(rows.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
            )

        return Tangent(*map(choose, self, other))


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
    shortest = apply(inverse, c) / unit
    return torch.where(regular.unsqueeze(-1), x, torch.where(finite.unsqueeze(-1), shortest, torch.nan))


def estimate(tangent: Tangent) -> Estimate:
    """The step to the minimum of the model, which is Newton's for a root, and what the curvature of a fit makes of it."""
    return Estimate(tangent.newton, 0.0, tangent.gain, complete=True)


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
        gain = apply(old.R, scaled).square().sum(-1) / bend
        gain = torch.where(bend > 0, gain.clamp(min=1), torch.inf)
        if not root:
            new = new._replace(gain=torch.where(shown, gain, old.gain))
        return new, torch.where(new.gradient.isfinite().all(-1) & decrease.isfinite(), decrease, -torch.inf)


def check_squares(equations: Equations, method: str) -> None:
    """Raise TypeError where a minimum has bounds. (An objective that is no sum of squares is refused where it is evaluated.)"""
    if equations.kind.bounded and equations.kind.minimised:
        raise TypeError(f"{method} does not know of bounds. Use 'projected_newton', the default.")
