"""Steps that are tried first: what trust regions, damped steps and halved ones have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished
from torchimplicit.solvers.equations import Equations
from torchimplicit.solvers.method import Method

Plan = TypeVar("Plan")
There = TypeVar("There")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Trial(Generic[Plan, There]):
    """Systems at z with the residual r, (B, n) each; the points ``at`` which they may go to, what the method has thought of that step,
    and what was evaluated ``there``."""

    equations: Equations
    z: Tensor
    r: Tensor
    at: Tensor
    plan: Plan
    there: There


class Taken:
    """Which systems take their step, (B,)."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.everywhere = finished(rows)

    def __call__(self, new: Tensor, old: Tensor) -> Tensor:
        """What is new for those, what there was for the others."""
        return new if self.everywhere else torch.where(self.rows.reshape(-1, *(1,) * (new.ndim - 1)), new, old)


class TrialMethod(Method, ABC, Generic[Plan, There, Found]):
    """A method each of whose steps is one trial: a system that refuses its point stays where it is and tries a nearer one in the next
    step of the loop, while its neighbours go on. Where the function raises, the whole batch comes nearer."""

    @abstractmethod
    def propose(self, equations: Equations, z: Tensor, r: Tensor, state: Any) -> tuple[Tensor, Plan, Any]:
        """The points (B, n) to be tried, what is thought of them, and the state, with what was found on the way there."""

    @abstractmethod
    def look(self, equations: Equations, z: Tensor) -> There:
        """What is evaluated at trial points."""

    @abstractmethod
    def nearer(self, plan: Plan, state: Any) -> Any:
        """The state after points of which nothing is known, for the function raised there."""

    @abstractmethod
    def judge(self, trial: Trial[Plan, There], state: Any) -> tuple[Tensor, Found, Any]:
        """Which systems take their step, (B,), what was found there, and the state of those that do not."""

    @abstractmethod
    def arrive(
        self, z: Tensor, taken: Taken, trial: Trial[Plan, There], found: Found, state: Any
    ) -> tuple[Tensor, Any]:
        """The residual and the state at z, to where some systems have come."""

    def step(self, equations: Equations, z: Tensor, r: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        at, plan, state = self.propose(equations, z, r, state)
        there = equations.attempt(self.look, equations, at)
        if there is None:
            return z, r, self.nearer(plan, state)
        trial = Trial(equations, z, r, at, plan, there)
        rows, found, state = self.judge(trial, state)
        if finished(~rows):
            return z, r, state
        taken = Taken(rows)
        z = taken(at, z)
        r, state = self.arrive(z, taken, trial, found, state)
        return z, r, state
