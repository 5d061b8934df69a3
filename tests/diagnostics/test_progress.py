"""The progress bar for long solves."""

import io
import sys

import pytest
import torch

import torchimplicit as ti
from torchimplicit.diagnostics import ProgressBar


def test_it_shows_the_steps_and_residuals_of_a_solve():
    rich_console = pytest.importorskip("rich.console")
    console = rich_console.Console(file=io.StringIO(), width=120)
    x = torch.linspace(0, 1, 3, dtype=torch.float64)
    with ProgressBar("cosine", max_steps=50, console=console) as bar:
        _, info = ti.fixed_point(lambda z, x: z.cos() / 2 + x, 0 * x, (x,), solver="picard", batch_ndim=1, callback=bar)
    shown = console.file.getvalue()
    assert "cosine" in shown
    assert f"step {int(info.steps.max())}" in shown
    assert f"residual {info.residual.max().item():.1e}" in shown


def test_without_rich_the_extra_is_named(monkeypatch):
    for module in [name for name in sys.modules if name.partition(".")[0] == "rich"] + ["rich"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"torchimplicit\[cli\]"):
        ProgressBar()
