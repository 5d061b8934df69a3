"""Bisection."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from torchimplicit.solvers.bracket import Bracket, Bracketing, Own


@dataclass(frozen=True)
class Bisection(Bracketing):
    """The middle of the bracket, in every step: a binary digit of the root for each evaluation, whatever g does.

    Source: Burden and Faires, Numerical Analysis (2011), section 2.1.
    """

    def propose(self, bracket: Bracket, own: Own) -> tuple[Tensor, Own]:
        return bracket.middle, own
