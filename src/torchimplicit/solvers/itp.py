"""The ITP method: interpolate, truncate, project."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.solvers.bracket import Bracket, Bracketing, Own

KAPPA_1 = 0.2  # of the truncation, in units of 1 / the first bracket's width
SLACK = 1  # n0: how many evaluations more than bisection it may need


@dataclass(frozen=True)
class ITP(Bracketing):
    """Regula falsi, moved a little towards the middle, and held so near to it that n0 = 1 evaluation more than bisection
    always suffices; superlinear where g is smooth.

    With m the middle, x_f the root of the secant, w the width of the bracket and w0 that of the first one, in step j:
    truncation by δ = κ₁ w² with κ₁ = 0.2/w0; projection onto |x − m| ≤ ε 2^(n_max − j) − w/2, n_max = ⌈log₂(w0/2ε)⌉ + n0, with ε
    the distance of neighbouring floats.
    Source: Oliveira and Takahashi, An enhancement of the bisection method average performance preserving minmax optimality, ACM
    Trans. Math. Softw. 47 (2021) 5, section 2.
    """

    def begin(self, bracket: Bracket) -> Own:
        """κ₁, and ε 2^n_max."""
        width = (bracket.b - bracket.a).abs()
        eps = torch.finfo(width.dtype).eps * torch.maximum(bracket.a.abs(), bracket.b.abs())
        return KAPPA_1 / width, eps * torch.exp2((width / (2 * eps)).log2().ceil() + SLACK)

    def propose(self, bracket: Bracket, own: Own) -> tuple[Tensor, Own]:
        kappa, reach = own
        a, fa, b, fb, _, _ = bracket
        width, middle = b - a, bracket.middle
        secant = a - fa / (fb - fa) * width
        towards = middle - secant
        delta = kappa * width * width
        truncated = torch.where(delta <= towards.abs(), secant + towards.sign() * delta, middle)
        radius = (reach - width.abs() / 2).clamp(min=0)
        x = torch.where((truncated - middle).abs() <= radius, truncated, middle - towards.sign() * radius)
        return torch.where(x.isfinite(), x, middle), (kappa, reach / 2)
