"""What an error that the user's function has raised most likely comes from, added to its message."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch

from torchimplicit.layout import Layout
from torchimplicit.private.autograd import mixes_precisions

CALLERS = ("torchimplicit", "torch")  # modules that call the user's functions


def hint(error: Exception, layout: Layout, called: str) -> None:
    """Add to the message of an error, in place, how a function is ``called`` whose parameters are others, or which dtype z0 has where
    that is not the one of the data; nothing to any other error."""
    said = ""
    if isinstance(error, TypeError) and _of_the_call(error):
        said = f"The function is called as {called}: z first, then each of args."
    elif layout.real_dtype == torch.float32 and mixes_precisions(error):
        said = "z0 is float32. Where the data are float64, so must z0 be (z0.double()); or convert the data (.float())."
    if said and said not in str(error):
        error.args = (f"{str(error).rstrip('.')}. {said}",)


def _of_the_call(error: TypeError) -> bool:
    """Whether it says that a function takes other arguments, and is raised where we call one, not within."""
    if "positional argument" not in str(error):
        return False
    last: Any = error.__traceback__
    while isinstance(last, TracebackType) and last.tb_next is not None:
        last = last.tb_next
    return last is None or last.tb_frame.f_globals.get("__name__", "").partition(".")[0] in CALLERS
