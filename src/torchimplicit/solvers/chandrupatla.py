"""Chandrupatla's method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.solvers.bracket import Bracket, Bracketing, Own


@dataclass(frozen=True)
class Chandrupatla(Bracketing):
    """Inverse quadratic interpolation through the last three points where that is safe, else bisection.

    With ξ = (a − b)/(c − b) and φ = (fa − fb)/(fc − fb), the interpolating parabola is monotone in the bracket, and its root
    trusted, if φ² < ξ and (1 − φ)² < 1 − ξ. Fewer evaluations than Brent's method, and a simpler rule. The next point lies past
    that root, as seen from the end where g is smaller, by the distance to the secant's root, so that both ends come nearer.
    Source: Chandrupatla, A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear function without using
    derivatives, Advances in Engineering Software 28 (1997) 145-149.
    """

    def propose(self, bracket: Bracket, own: Own) -> tuple[Tensor, Own]:
        a, fa, b, fb, c, fc = bracket
        width = b - a
        xi = (a - b) / (c - b)
        phi = (fa - fb) / (fc - fb)
        t = fa / (fb - fa) * fc / (fb - fc) + (c - a) / width * fa / (fc - fa) * fb / (fc - fb)
        safe = (phi * phi < xi) & ((1 - phi) * (1 - phi) < 1 - xi) & t.isfinite()
        least = (torch.finfo(a.dtype).eps * torch.maximum(a.abs(), b.abs()) / width.abs()).clamp(max=0.5)
        past = (t - fa / (fa - fb)).abs() + least
        t = torch.where(fa.abs() < fb.abs(), t + past.minimum((1 - t) / 2), t - past.minimum(t / 2))
        t = torch.where(safe, torch.minimum(torch.maximum(t, least), 1 - least), 0.5)
        return a + t * width, own
