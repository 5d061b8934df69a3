"""The page of failures: each status that exists is provoked by its entry, and mended by it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from torchimplicit import Status

ROOT = Path(__file__).parent.parent.parent
SOURCE = ROOT / "src" / "torchimplicit"
PAGE = ROOT / "docs" / "concepts" / "failures.md"
SETUP, *ENTRIES = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.M)
ENTRIES = {entry.partition("\n")[0]: entry for entry in ENTRIES}


def cells(text: str) -> list[str]:
    return [
        re.sub(r"^:.*\n", "", code, flags=re.M)
        for code in re.findall(r"^```{code-cell} python\n(.*?)^```", text, re.M | re.S)
    ]


def given(status: Status) -> bool:
    """Whether a module other than the one of statuses gives it to a system."""
    files = (path for path in SOURCE.rglob("*.py") if path.name not in ("status.py", "prose.py"))
    return any(f"Status.{status.name}" in path.read_text(encoding="utf-8") for path in files)


def test_every_status_that_is_given_has_an_entry() -> None:
    failures = [status for status in Status if status not in (Status.CONVERGED, Status.RUNNING) and given(status)]
    assert list(ENTRIES) == [status.name.lower() for status in failures]


@pytest.fixture(scope="module")
def set_up() -> dict[str, Any]:
    """What the cells above the entries leave."""
    names: dict[str, Any] = {}
    for cell in cells(SETUP):
        exec(cell, names)
    return names


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_provokes_its_status_and_mends_it(
    name: str, set_up: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    names = dict(set_up)
    capsys.readouterr()
    provoked, mended = cells(ENTRIES[name])
    exec(provoked, names)
    assert (names["info"].status == Status[name.upper()]).any()
    assert name in capsys.readouterr().out
    exec(mended, names)
    assert torch.as_tensor(names["info"].converged).all()
