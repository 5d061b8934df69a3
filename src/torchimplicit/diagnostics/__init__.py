"""Look into a solve: checks of a layer's well-posedness and gradients, and a progress bar."""

from torchimplicit.diagnostics.check import Check, Verdict, check
from torchimplicit.diagnostics.progress import ProgressBar

__all__ = ["Check", "ProgressBar", "Verdict", "check"]
