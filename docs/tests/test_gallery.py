"""Every example of the gallery runs to its end: what it asserts against an independent truth holds."""

from __future__ import annotations

import ast
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


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem.removeprefix("plot_"))
def test_an_example_asserts_something_and_is_read_in_two_minutes(example: Path) -> None:
    source = example.read_text()
    nodes = list(ast.walk(ast.parse(source)))
    checks = [node for node in nodes if isinstance(node, ast.Assert) or getattr(node, "attr", "") == "assert_close"]
    assert checks, "an example holds what it computes against an independent truth"
    assert len(source.splitlines()) <= 180
