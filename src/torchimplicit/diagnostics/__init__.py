"""A look into a solve: checks of a layer's well-posedness and gradients, and a progress bar."""

from torchimplicit.diagnostics.check import check
from torchimplicit.diagnostics.facts import facts
from torchimplicit.diagnostics.progress import ProgressBar
from torchimplicit.diagnostics.verdict import Check, Verdict

__all__ = ["Check", "ProgressBar", "Verdict", "check", "facts"]
