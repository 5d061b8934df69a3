"""What a check found: verdicts in words, and the numbers behind them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

KindName = Literal["root", "fixed_point", "minimize", "least_squares"]
Level = Literal["ok", "note", "fail"]


@dataclass(frozen=True)
class Verdict:
    """One thing that was looked at. ``level``: "ok"; "note", worth knowing; "fail", wrong."""

    name: str
    level: Level
    text: str


@dataclass
class Check:
    """What :func:`check` found. ``print`` it, or look at the numbers; ``ok`` is False if anything failed.

    info : facts of the forward solve; ``info.adjoint``, of the backward one.
    spectral_radius : of ∂f/∂z at z*, the largest of the batch (fixed points only).
    smallest_singular_value, condition_number : of ∂g/∂z at z*, the worst of the batch.
    derivative_error : autograd's derivative of the function itself, against finite differences.
    gradient_error : the implicit gradient against finite differences of the solution.
    explicit_error : the explicit gradient against the implicit one.
    seconds : time of each part.
    """

    kind: KindName
    systems: int
    unknowns: int
    info: Any = field(repr=False)
    verdicts: list[Verdict] = field(default_factory=list)
    spectral_radius: float | None = None
    smallest_singular_value: float | None = None
    condition_number: float | None = None
    derivative_error: float | None = None
    gradient_error: float | None = None
    explicit_error: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Nothing failed. Notes do not count."""
        return all(verdict.level != "fail" for verdict in self.verdicts)

    def __str__(self) -> str:
        many = (
            f"{self.systems} systems of {self.unknowns} unknowns" if self.systems > 1 else f"{self.unknowns} unknowns"
        )
        head = f"{self.kind}, {many}: {'all well' if self.ok else 'NOT well'}"
        return "\n".join([head, *(f"  {v.level:>4}  {v.name}: {v.text}" for v in self.verdicts)])

    def say(self, name: str, level: Level, text: str) -> None:
        """Add a verdict."""
        self.verdicts.append(Verdict(name, level, text))
