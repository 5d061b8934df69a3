"""Several methods in turn: the cheap one first, the robust ones for what it has not solved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchimplicit.layout import Layout
from torchimplicit.solvers.method import Method, adopted, is_method


@dataclass(frozen=True)
class Polyalgorithm:
    """The stages one after the other, each from z0, for those systems that none before it has solved.

    Where the first stage solves everything nothing else is evaluated. Systems that are done are frozen, or gathered out where
    the call says which arguments carry the batch (``batched=``). A stage takes at most its own number of steps, and all
    together at most ``max_steps``. A system that no stage solves keeps the best point of all, and the status of the stage that
    found it. Where g raises in a step of a method that does not shorten its steps, that stage ends for the whole batch.
    ``info.tried`` names the stages that ran, ``info.solved_by`` says which of them solved each system.

    ``Unrolled`` records the steps of the first stage only; so does a solve under a transform, where no value may decide what
    runs next.
    """

    stages: Sequence[Method]

    def __post_init__(self) -> None:
        stages = self.stages
        if not isinstance(stages, (tuple, list)) or not stages:
            raise ValueError(f"Polyalgorithm needs a tuple of solvers, at least one; got {stages!r}.")
        for stage in stages:
            if not is_method(stage):
                raise TypeError(
                    f"Polyalgorithm: each stage must be an object of torchimplicit.solvers, such as Newton(), and no Polyalgorithm "
                    f"itself; got {stage!r}."
                )

    @property
    def max_steps(self) -> int:
        """Of all stages together."""
        return sum(stage.max_steps for stage in self.stages)

    def fitted(self, layout: Layout) -> Polyalgorithm:
        """With every stage fitted, and a :class:`Method`."""
        return Polyalgorithm([adopted(stage).fitted(layout) for stage in self.stages])
