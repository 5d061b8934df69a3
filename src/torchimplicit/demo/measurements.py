"""What the demo has measured."""

from __future__ import annotations

from dataclasses import dataclass

from torchimplicit.demo import claims
from torchimplicit.demo.train import Trained


@dataclass(frozen=True)
class Measurements:
    """Everything the report shows."""

    trained: Trained
    solver_steps: list[int]
    """of every test image"""
    residuals: dict[str, list[float]]
    equilibrium: claims.SideBySide
    newton: claims.SideBySide
    vanishing: list[claims.LongProduct]
    exploding: list[claims.LongProduct]
    two_terms: claims.TwoTerms
    fold: list[claims.FoldPoint]
    backward_solvers: list[claims.BackwardSolver]
    reuse: list[claims.Reuse]
    root_finders: list[claims.RootFinder]
    seed: int
    quick: bool
    seconds: float
    machine: str
