"""Broyden's method with limited memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import tracing
from torchimplicit.linear.factors import DirectSolver, Factors
from torchimplicit.linear.solver import Left
from torchimplicit.linear.window import Count, start_of_count, store
from torchimplicit.parameters import check_count
from torchimplicit.solvers.descent import dot
from torchimplicit.solvers.equations import Equations, Estimate, growth, whole
from torchimplicit.solvers.method import Method
from torchimplicit.solvers.newton import PLAIN_LU, check_direct

FADING = 0.7  # of what an earlier step has shown of the gain, at each later one


class BroydenState(NamedTuple):
    """The inverse Jacobian (I + Σ u vᵀ) M, with M the identity or the inverse of the first Jacobian.

    factors : the tensors of those of the first Jacobian; None where M is the identity.
    p : M r, with the residual r.
    Hp : H r, the next step but for its sign: (I + Σ u vᵀ) p.
    gain : how much larger the error is than p, (B,), by the largest ‖Δz‖ / ‖Δp‖ of late; None at the start.
    u, v : windows (B, m, n).
    k : how many updates they hold.
    """

    factors: tuple[Tensor, ...] | None
    p: Tensor
    Hp: Tensor
    gain: Tensor | None
    u: Tensor
    v: Tensor
    k: Count


@dataclass(frozen=True)
class Broyden(Method):
    """Broyden's first ("good") method: z ← z − H g(z), H a rank-one update of the inverse Jacobian at every step.

    H starts as the identity, the inverse Jacobian of a fixed point z − f(z) where f is nearly constant, or
    (``start="jacobian"``) as the inverse of the Jacobian at z0, the only one that is computed; and it starts again after
    ``memory`` updates. A system whose update would divide by (nearly) zero skips it. One that comes no nearer in ``patience``
    steps has stagnated.
    Source: Broyden, A class of methods for solving nonlinear simultaneous equations, Math. Comp. 19 (1965);
    Kelley (1995), section 7.3.
    """

    start: Literal["identity", "jacobian"] = "identity"
    memory: int = 30
    linear_solver: DirectSolver = None  # type: ignore[assignment]  # LU without scaling
    patience: int = 60
    max_steps: ClassVar[int] = 300
    in_graph: ClassVar[bool] = True
    inverse_is_earlier: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.linear_solver:  # a default that torch.compile can read
            object.__setattr__(self, "linear_solver", PLAIN_LU)
        check_count("Broyden: memory", self.memory)
        check_count("Broyden: patience", self.patience)
        check_direct(self.linear_solver, "Broyden")
        if self.start not in ("identity", "jacobian"):
            raise ValueError(f'Broyden: start must be "identity" or "jacobian"; got {self.start!r}.')

    @property
    def near_identity(self) -> bool:
        """Whether what it solves is likely to be the identity less a contraction."""
        return self.start == "identity"

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, BroydenState]:
        window = z.new_zeros(z.shape[0], self.memory, z.shape[1])
        unknown = z.new_full(z.shape[:1], torch.nan) if tracing() else None
        if self.start == "identity":
            r = equations.residual(z)
            return r, BroydenState(None, r, r, unknown, window, window.clone(), start_of_count(z))
        jacobian = equations.jacobian(z)
        factors = self.linear_solver.factorize(jacobian)
        p = factors.solve(jacobian.value)
        state = BroydenState(factors.tensors, p, p, unknown, window, window.clone(), start_of_count(z))
        return jacobian.value, state

    def step(
        self, equations: Equations, z: Tensor, r: Tensor, state: BroydenState
    ) -> tuple[Tensor, Tensor, BroydenState]:
        factors, p, Hp, gain, u, v, k = state
        s = -Hp
        z_new = z + s
        r_new = equations.residual(z_new)
        p_new = r_new if factors is None else self.linear_solver.from_tensors(factors).solve(r_new)
        if isinstance(k, Tensor):
            full = k == self.memory
            u, v, Hp = torch.where(full, 0, u), torch.where(full, 0, v), torch.where(full, p, Hp)
            k = torch.where(full, 0, k)
        elif k == self.memory:
            u, v, k, Hp = torch.zeros_like(u), torch.zeros_like(v), 0, p
        used = None if isinstance(k, Tensor) else k  # the rest is zero
        y = p_new - p
        with torch.no_grad():
            length = torch.linalg.vector_norm(s, dim=-1)
            seen = growth(length, torch.linalg.vector_norm(y, dim=-1))
            gain = seen if gain is None else seen.fmax(FADING * gain)
        Hy = _apply(u[:, :used], v[:, :used], y)
        divisor = dot(s, Hy).unsqueeze(-1)
        size = (length * torch.linalg.vector_norm(Hy, dim=-1)).unsqueeze(-1)
        usable = (divisor.abs() > torch.finfo(z.dtype).eps * size) & size.isfinite()
        update = torch.where(usable, (s - Hy) / torch.where(usable, divisor, 1), 0)
        v_new = torch.where(usable, _apply(v[:, :used], u[:, :used], s), 0)  # (I + Σ v uᵀ) s
        Hp_new = Hp + Hy  # with the new H one term more; products with the windows are what a step costs
        Hp_new = Hp_new + update * dot(s, Hp_new).unsqueeze(-1)
        return z_new, r_new, BroydenState(factors, p_new, Hp_new, gain, store(u, k, update), store(v, k, v_new), k + 1)

    def estimate(self, z: Tensor, r: Tensor, state: BroydenState) -> Estimate:
        """All that the residual stands for. The next step is less in directions that were not seen yet, where H is the identity."""
        if state.gain is None:
            return Estimate(state.p, None if state.factors is None else 0.0)
        return whole(state.gain, state.p)

    def inverse(self, state: BroydenState) -> tuple[Tensor, ...]:
        """H as tensors, to serve (transposed) in the backward; none where it never saw a Jacobian."""
        if state.factors is None:
            return ()
        used = torch.arange(self.memory, device=state.u.device) < state.k
        u = torch.where(used.unsqueeze(-1), state.u, 0)  # as many for every part of a batch that was solved in parts
        return (*state.factors, u, state.v)

    def from_tensors(self, tensors: Sequence[Tensor]) -> Left:
        """The inverse again."""
        *factors, u, v = tensors
        return UpdatedInverse(self.linear_solver.from_tensors(factors), u, v)


class UpdatedInverse:
    """(I + Σ u vᵀ) M, with M given by factors and u, v (B, k, n)."""

    def __init__(self, factors: Factors, u: Tensor, v: Tensor) -> None:
        self.factors, self.u, self.v = factors, u, v

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """Its product, or that of its adjoint, with b (..., B, n)."""
        if adjoint:
            return self.factors.solve(_apply(self.v, self.u, b), adjoint=True)
        return _apply(self.u, self.v, self.factors.solve(b))

    @property
    def suspicious(self) -> Tensor:
        """Whether the factors are those of a matrix that may be singular."""
        return self.factors.suspicious


def _apply(u: Tensor, v: Tensor, x: Tensor) -> Tensor:
    """(I + Σ u vᵀ) x for windows u, v (B, m, n) and x (..., B, n)."""
    return x + (x.unsqueeze(-2) @ v.mT @ u).squeeze(-2)  # rows times matrices: v @ x takes ten times longer
