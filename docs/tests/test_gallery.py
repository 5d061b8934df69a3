"""Every example of the gallery runs to its end: what it asserts against an independent truth holds."""

from __future__ import annotations

import runpy
from pathlib import Path

import matplotlib
import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "gallery").glob("plot_*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem.removeprefix("plot_"))
def test_an_example(example: Path) -> None:
    matplotlib.use("agg")
    runpy.run_path(str(example), run_name="__main__")
    assert matplotlib.pyplot.get_fignums(), "an example ends in a figure"
    matplotlib.pyplot.close("all")
