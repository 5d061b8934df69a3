"""Newton's method for minima, in a trust region, with dense Hessians."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished, tracing, values_hidden
from torchimplicit.graph.loop import settle, where_needed
from torchimplicit.linear.cholesky import CholeskyFactors, clearly_definite, least_norm
from torchimplicit.linear.solver import Left
from torchimplicit.solvers.descent import check_minimised, dot
from torchimplicit.solvers.equations import Equations, Estimate
from torchimplicit.solvers.trial import Taken
from torchimplicit.solvers.trust_region import Downhill, Objective, Seen, first_radius, judge, nearer
from torchimplicit.status import Status

ITERATIONS = 60  # at most, for the length of a step
ACCURACY = 0.1  # of that length

# A step, and the decrease that the parabola predicts for it.
Plan = tuple[Tensor, Tensor]


class TrustState(NamedTuple):
    """What the next step needs.

    value : the objective at z, (B,).
    hessian : at z, (B, n, n).
    L : its Cholesky factor, NaN where it is not positive definite.
    newton : H⁻¹∇φ, (B, n); where H is flat in some directions up to rounding the shortest of several, infinite where
        it has a negative eigenvalue, or φ a slope where it is flat.
    radius : no step is longer, (B,); infinite until one was refused.
    start : z and ∇φ where the solve began, (B, n) each.
    ran_off : whether z has run off along a slope that nothing bends, (B,).
    """

    value: Tensor
    hessian: Tensor
    L: Tensor
    newton: Tensor
    radius: Tensor
    start: tuple[Tensor, Tensor]
    ran_off: Tensor

    @staticmethod
    def at(
        z: Tensor, value: Tensor, r: Tensor, hessian: Tensor, radius: Tensor, start: tuple[Tensor, Tensor]
    ) -> TrustState:
        """With the Hessian factorised."""
        L, info = torch.linalg.cholesky_ex(hessian)
        definite = (info == 0) & clearly_definite(L, hessian)
        L = torch.where(definite[:, None, None], L, torch.nan)
        newton = torch.cholesky_solve(r.unsqueeze(-1), L).squeeze(-1)
        shortest, ran_off = where_needed(
            ~definite,
            lambda hessian, r, z, *start: least_norm(hessian, r, z, start),
            (newton, torch.zeros_like(definite)),
            (hessian, r, z, *start),
        )
        newton, ran_off = torch.where(definite.unsqueeze(-1), newton, shortest), ran_off & ~definite
        return TrustState(value, hessian, L, newton, radius, start, ran_off)


@dataclass(frozen=True)
class TrustNewton(Downhill[Plan]):
    """z ← z + s, s the minimiser of the parabola φ + ∇φᵀs + sᵀHs / 2 in the ball ‖s‖ ≤ Δ: Newton's step where H is positive
    definite and Δ allows it.

    Elsewhere s = −(H + λI)⁻¹∇φ with the λ for which ‖s‖ = Δ, from the eigenvalues of H: the way down from a saddle point or a maximum,
    also where ∇φ has no part in the direction of negative curvature. A step that does not lower φ as promised, or leads to NaN or Inf,
    is refused, in its own system only, and Δ falls.
    The Hessian at z* is factorised for the backward pass. One evaluation a step.
    Source: Moré and Sorensen, Computing a trust region step, SIAM J. Sci. Stat. Comput. 4 (1983); Nocedal and Wright, Numerical
    Optimization (2006), section 4.3.
    """

    max_steps: ClassVar[int] = 500
    patience: ClassVar[int] = 30
    in_graph: ClassVar[bool] = True

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, TrustState]:
        check_minimised(equations, "TrustNewton")
        value, jacobian = equations.objective_and_jacobian(z)
        radius = torch.full_like(value, torch.inf)
        start = z.detach(), jacobian.value.detach()
        return jacobian.value, TrustState.at(z, value, jacobian.value, jacobian.to_dense(), radius, start)

    def propose(self, equations: Equations, z: Tensor, r: Tensor, state: TrustState) -> tuple[Tensor, Plan, TrustState]:
        s, radius, predicted = _step(state.hessian, state.newton, r, state.radius, z)
        return z + s, (s.detach(), predicted.detach()), state._replace(radius=radius)

    def nearer(self, plan: Plan, state: TrustState) -> TrustState:
        return state._replace(radius=nearer(state.radius, plan[0]))

    def judge(self, trial: Seen[Plan], state: TrustState) -> tuple[Tensor, Objective, TrustState]:
        value, jacobian = trial.there
        accepted, radius = judge((state.value, value), (trial.r, jacobian.value), *trial.plan, state.radius)
        return accepted, trial.there, state._replace(radius=radius)

    def arrive(
        self, z: Tensor, taken: Taken, trial: Seen[Plan], found: Objective, state: TrustState
    ) -> tuple[Tensor, TrustState]:
        value, jacobian = found
        r, hessian = taken(jacobian.value, trial.r), taken(jacobian.to_dense(), state.hessian)
        return r, TrustState.at(z, taken(value, state.value), r, hessian, state.radius, state.start)

    def estimate(self, z: Tensor, r: Tensor, state: TrustState) -> Estimate:
        """Newton's correction; infinite where the Hessian is not positive definite."""
        return Estimate(state.newton, 0.0)

    def merit(self, state: TrustState) -> Tensor:
        """The objective at z, (B,)."""
        return state.value

    def verdict(self, state: TrustState) -> Tensor:
        """DIVERGED where z has run off so far that rounding hides the slope along which it did, (B,); else RUNNING."""
        return torch.where(state.ran_off, Status.DIVERGED, Status.RUNNING)

    def hessian(self, state: TrustState) -> Tensor:
        """At z, (B, n, n)."""
        return state.hessian

    def inverse(self, state: TrustState) -> tuple[Tensor, ...]:
        """Cholesky's L of the Hessian at z, NaN where that is not positive definite, to serve in the backward; none for numbers."""
        if state.hessian.shape[-1] == 1:
            return ()
        return (state.L,)

    def from_tensors(self, tensors: Sequence[Tensor]) -> Left:
        """The inverse again."""
        return CholeskyFactors(tensors)


def _step(H: Tensor, newton: Tensor, r: Tensor, radius: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The step of every system, the radius it was found for, and the decrease of the objective that the parabola predicts."""
    s = -newton
    inside = torch.linalg.vector_norm(s.detach(), dim=-1) < radius  # which is not so of NaN, nor of Inf
    if finished(inside):
        return s, radius, -dot(r, s) / 2
    radius = torch.where(inside, radius, first_radius(radius, z))
    with torch.no_grad():
        if tracing():
            edge = where_needed(~inside, lambda *at: (_at_the_edge(*at),), (torch.zeros_like(s),), (H, r, radius))[0]
        elif values_hidden():
            edge = _at_the_edge(H, r, radius)
        else:
            others = (~inside).nonzero().squeeze(-1)
            edge = torch.zeros_like(s).index_put((others,), _at_the_edge(H[others], r[others], radius[others]))
    s = torch.where(inside.unsqueeze(-1), s, edge)
    return s, radius, -dot(r, s) - dot(s, (H @ s.unsqueeze(-1)).squeeze(-1)) / 2


def _at_the_edge(H: Tensor, r: Tensor, radius: Tensor) -> Tensor:
    """s = −(H + λI)⁻¹ r with λ ≥ 0, H + λI positive semidefinite and ‖s‖ = Δ, or λ = 0 where ‖s‖ is smaller.

    With the eigenvalues wᵢ of H, s has the coordinates −aᵢ / (wᵢ − w₀ + μ), μ = λ + w₀: as w₀ − w₀ is exactly 0, a tiny μ, and with it
    a long step along the lowest eigenvector, is as accurate as any. There a₀ is made at least eps ‖r‖, so that this step exists
    ("the hard case").
    """
    finite = H.isfinite().flatten(1).all(-1)[:, None, None]
    w, Q = torch.linalg.eigh(torch.where(finite, H, 0))
    a = (Q.mT @ r.unsqueeze(-1)).squeeze(-1)
    size = torch.linalg.vector_norm(a, dim=-1)
    tiny = torch.finfo(r.dtype).eps * size
    lowest = torch.where(a[:, :1].abs() < tiny.unsqueeze(-1), tiny.unsqueeze(-1), a[:, :1])
    a = torch.cat([lowest, a[:, 1:]], dim=-1)
    gaps = w - w[:, :1]
    low = w[:, 0].clamp(min=0)
    high = (size / radius).maximum(low)
    none = torch.zeros_like(low, dtype=torch.bool)
    mu = settle(_nearer_the_edge, (high, low, high, none), ITERATIONS, (a, gaps, radius))[0]
    s = -a / (gaps + mu.unsqueeze(-1))
    return (Q @ s.unsqueeze(-1)).squeeze(-1).nan_to_num(0, 0, 0)


def _nearer_the_edge(
    state: tuple[Tensor, ...], a: Tensor, gaps: Tensor, radius: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The next μ between its bounds, by Newton's method for 1 / ‖s‖ = 1 / Δ, and where the last one was right."""
    mu, low, high, _ = state
    s = a / (gaps + mu.unsqueeze(-1))
    length = torch.linalg.vector_norm(s, dim=-1)
    found = (length / radius - 1).abs() <= ACCURACY
    low, high = torch.where(length > radius, mu, low), torch.where(length > radius, high, mu)
    slope = (s.square() / (gaps + mu.unsqueeze(-1))).sum(-1)
    newton = mu + length.square() / slope * (length - radius) / radius
    middle = torch.where(low > 0, (low * high).sqrt(), 1e-3 * high)
    mu = torch.where(found, mu, torch.where((newton > low) & (newton < high), newton, middle))
    return mu, low, high, found
