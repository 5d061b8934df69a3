"""A solver of this package that takes all its steps: it goes on where rounding lets it come no closer."""

from __future__ import annotations

from typing import Any


def patient(method: str) -> Any:
    import torchimplicit as ti

    return type("Patient", (getattr(ti.solvers, method),), {"patience": 10**9})()
