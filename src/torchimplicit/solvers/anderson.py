"""Anderson acceleration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished, tracing
from torchimplicit.graph.loop import where_needed
from torchimplicit.linear.mixing import mixture
from torchimplicit.linear.window import Count, start_of_count, store
from torchimplicit.parameters import check_count, check_positive
from torchimplicit.solvers.equations import Equations, Estimate, growth, whole
from torchimplicit.solvers.method import Method

FADING = 0.7  # of what an earlier step has shown of the gain, at each later one


class AndersonState(NamedTuple):
    """What the method remembers. A system's own part of it depends on no other system.

    norm : of the residual, (B,).
    fall : what the last step has left of the residual, (B,); None at the start.
    gain : how much larger the error of a system that mixes is than its residual, (B,), by what its latest steps did to that; None
        as long as no system mixes.
    mixing : the systems that mix, (B,); None where all do.
    eager : those that mix at every step, (B,); None where none do.
    dr : the last differences of residuals, old less new, (B, m, n); None as long as no system mixes.
    dp : those of where a plain step leads, p = z − damping · r.
    k : the steps taken. Of a system that did not mix yet the differences are 0, which play no part.
    earlier : the residual before the last step, in a graph as long as no system mixes.
    """

    norm: Tensor
    fall: Tensor | None
    gain: Tensor | None
    mixing: Tensor | None
    eager: Tensor | None = None
    dr: Tensor | None = None
    dp: Tensor | None = None
    k: Count = 0
    earlier: Tensor | None = None


@dataclass(frozen=True)
class Anderson(Method):
    """Plain steps, of which every ``period``-th starts from the mixture of the last ``memory`` ones for which the linear model of
    the residual is smallest.

    γ minimises ‖r − ΔR γ‖² + ε ‖ΔR‖² ‖γ‖²;  z ← (z − ΔZ γ) − damping · (r − ΔR γ).
    Plain steps in between fill the memory with differences that are less alike: that takes fewer evaluations than to mix at every
    step (``period=1``, Anderson's own method), and a mixture costs more than a plain step. Two kinds of systems mix at every step
    nevertheless: those of no more unknowns than ``memory``, for which that is a secant method, which converges superlinearly; and one
    that a plain step has led away, to a larger residual.
    A system whose mixing problem cannot be solved (zero or non-finite differences) takes a plain step, and so does one as long
    as plain steps reduce its residual to less than ``plain_below`` times what it was: then there is little to gain. Where mixing has
    made the residual larger (or NaN) the plain step is evaluated too, and taken where it does better.
    Source: Walker and Ni, Anderson acceleration for fixed-point iterations, SIAM J. Numer. Anal. 49 (2011), eq. 2.2; Pratapa,
    Suryanarayana and Pask, Anderson acceleration of the Jacobi iterative method, J. Comput. Phys. 306 (2016), for the period.
    """

    memory: int = 6
    damping: float = 1.0
    regularisation: float | None = None  # ε; None: the dtype's rounding unit
    plain_below: float = 0.0
    period: int = 3
    max_steps: ClassVar[int] = 500
    patience: ClassVar[int] = 100
    in_graph: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("Anderson: memory", self.memory)
        check_count("Anderson: period", self.period)
        check_positive("Anderson: damping", self.damping)

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, AndersonState]:
        r = equations.residual(z)
        none = torch.zeros(z.shape[0], dtype=torch.bool, device=z.device)
        mixing = none if self.plain_below else None
        state = AndersonState(length(r.detach()), None, None, mixing, k=start_of_count(z))
        if tracing():
            nothing = torch.full_like(state.norm, torch.nan)
            state = state._replace(fall=nothing, eager=none, earlier=r)
            if mixing is None:
                windows = self._windows(z)
                state = state._replace(gain=nothing, dr=windows, dp=windows, earlier=None)
        return r, state

    def step(
        self, equations: Equations, z: Tensor, r: Tensor, state: AndersonState
    ) -> tuple[Tensor, Tensor, AndersonState]:
        before, _, gain, mixing, eager, dr, dp, k, _ = state
        plain = z.sub(r, alpha=self.damping)
        always = z.shape[1] <= self.memory or k % self.period == 0
        shift = forgets = None
        mixes_now = isinstance(always, Tensor) or always or eager is not None
        if dr is None or dp is None or not mixes_now:
            z_new, r_new = plain, equations.residual(plain)
            norm = length(r_new.detach())
            eager = _led_away(eager, None, norm, before)
        else:
            m = dr.shape[1] if isinstance(k, Tensor) else min(k, dr.shape[1])
            mixes: Tensor | None  # those that do not take a plain step, as if none did
            if isinstance(always, Tensor):
                mixes = torch.where(always, True if mixing is None else mixing, False if eager is None else eager)
            else:
                mixes = mixing if always else eager
            windows = r, dr[:, :m], dp[:, :m]
            if mixes is None:
                (shift,) = self._shift(*windows)
            else:
                (shift,) = where_needed(mixes, self._shift, (torch.zeros_like(z),), windows)
                shift = torch.where(mixes.unsqueeze(-1), shift, 0)
            z_new = plain + shift
            r_new = equations.residual(z_new)
            norm = length(r_new.detach())
            if not finished(norm <= before):
                if mixes is not None:
                    eager = _led_away(eager, mixes, norm, before)
                if (
                    tracing()
                ):  # a second evaluation would be made at every step: those stay, and mix from new differences
                    forgets = (self._led_astray(before, z_new, norm) & (shift != 0).any(-1)).unsqueeze(-1)
                    z_new, r_new = torch.where(forgets, z, z_new), torch.where(forgets, r, r_new)
                    norm = torch.where(forgets.squeeze(-1), before, norm)
                else:
                    z_new, r_new, norm = self._safeguarded(equations, plain, before, z_new, r_new, norm)
                shift = z_new - plain
        fall = norm / before
        if mixing is not None:
            mixing = mixing | ~(fall < self.plain_below)
            mixing = None if finished(mixing) else mixing
            if dr is None and mixing is not None and (tracing() or finished(~mixing)):
                earlier = r if tracing() else None
                return z_new, r_new, AndersonState(norm, fall, None, mixing, eager, k=k + 1, earlier=earlier)
        if dr is None or dp is None:
            dr, dp = self._windows(z), self._windows(z)
        ahead = r_new if self.damping == 1 else self.damping * r_new
        dp = store(dp, k, ahead, shift)
        if mixing is None:
            dr = store(dr, k, r, r_new)
            change = r - r_new if isinstance(k, Tensor) else dr[:, k % dr.shape[1]]
        else:
            change = r - r_new
            dr = store(dr, k, torch.where(mixing.unsqueeze(-1), change, 0))
        if forgets is not None:
            dr, dp = (torch.where(forgets.unsqueeze(-1), 0, window) for window in (dr, dp))
        with torch.no_grad():
            seen = growth(self.damping * before if shift is None else length(z_new - z), length(change))
            if forgets is not None:
                seen = torch.where(forgets.squeeze(-1), torch.inf, seen)
            if gain is not None:
                seen = seen.fmax(FADING * gain)
        return z_new, r_new, AndersonState(norm, fall, seen, mixing, eager, dr, dp, k + 1)

    def _windows(self, z: Tensor) -> Tensor:
        return z.new_zeros(z.shape[0], min(self.memory, max(1, z.shape[1])), z.shape[1])

    def outgrown(self, state: AndersonState) -> Tensor | None:
        """Whether a system mixes."""
        return None if state.earlier is None or state.mixing is None else state.mixing.any()

    def grown(self, z: Tensor, r: Tensor, state: AndersonState) -> AndersonState:
        """With windows, which hold what the last step has shown."""
        norm, fall, mixing, earlier = state.norm, state.fall, state.mixing, state.earlier
        assert fall is not None
        assert mixing is not None
        assert earlier is not None
        change = earlier - r
        dr = store(self._windows(z), state.k - 1, torch.where(mixing.unsqueeze(-1), change, 0))
        dp = store(self._windows(z), state.k - 1, self.damping * r)
        gain = growth(self.damping * (norm / fall), length(change))
        return state._replace(gain=gain, dr=dr, dp=dp, earlier=None)

    def estimate(self, z: Tensor, r: Tensor, state: AndersonState) -> Estimate:
        """Of a system that takes plain steps the next one; of one that mixes all that the residual stands for, by the
        largest ‖Δz‖ / ‖Δr‖ of late."""
        if state.gain is None or state.fall is None:
            return Estimate(r, scale=self.damping)
        if state.mixing is None:
            return whole(state.gain, r)
        scale = torch.where(state.mixing, state.gain, self.damping)
        return Estimate(r, torch.where(state.mixing, 0, state.fall), scale, complete=True)

    def _shift(self, r: Tensor, dr: Tensor, dp: Tensor) -> tuple[Tensor]:
        """From where the plain steps lead to the mixture of them, (B, n)."""
        return (-mixture(dr, dp, r, self.regularisation),)

    def _led_astray(self, before: Tensor, z_new: Tensor, norm: Tensor) -> Tensor:
        """Systems (B,) whose residual has become larger."""
        floor = torch.finfo(norm.dtype).eps ** 0.75 * length(z_new.detach())  # below it the residual is rounding error
        return ~(norm <= before.maximum(floor))

    def _safeguarded(
        self, equations: Equations, plain: Tensor, before: Tensor, z_new: Tensor, r_new: Tensor, norm: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The mixed step, or the plain one of a system where mixing has made the residual larger and that does better."""
        suspects = self._led_astray(before, z_new, norm)
        if finished(~suspects):
            return z_new, r_new, norm
        r_plain = equations.residual(plain)
        norm_plain = length(r_plain.detach())
        worse = suspects & ~(norm <= norm_plain)
        rows = worse.unsqueeze(-1)
        return (
            torch.where(rows, plain, z_new),
            torch.where(rows, r_plain, r_new),
            torch.where(worse, norm_plain, norm),
        )


length = partial(torch.linalg.vector_norm, dim=-1)


def _led_away(eager: Tensor | None, mixes: Tensor | None, norm: Tensor, before: Tensor) -> Tensor | None:
    """The eager systems, with those that a plain step (all of them, or those that do not mix) has led to a larger residual."""
    if finished(norm <= before):
        return eager
    away = ~(norm <= before) if mixes is None else ~mixes & ~(norm <= before)
    return away if eager is None else eager | away
