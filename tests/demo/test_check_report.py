"""What `torchimplicit check --html` writes of a user's layer."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("typer")

from typer.testing import CliRunner

from torchimplicit import cli
from torchimplicit.demo.check_report import SYSTEMS, html, look
from torchimplicit.diagnostics import check

D = torch.float64
W = torch.tensor([[0.5, -0.6, 0.1], [0.4, 0.3, 0.0], [0.0, 0.2, -0.4]], dtype=D)

LAYERS = """
import torch
W = torch.tensor([[0.5, -0.6, 0.1], [0.4, 0.3, 0.0], [0.0, 0.2, -0.4]], dtype=torch.float64)

def linear():
    x = torch.arange(12.0, dtype=torch.float64).view(4, 3)
    return lambda z, x: z @ W.T + x, torch.zeros_like(x), (x,), "fixed_point", {"batch_ndim": 1, "solver": "picard"}

def rootless():
    return lambda z, a: z**2 + a, torch.tensor(0.5), (torch.tensor(1.0),), "root", {"max_steps": 10}
"""


def linear_layer(rows: int = 4) -> dict[str, Any]:
    x = torch.arange(3.0 * rows, dtype=D).view(rows, 3)
    options = {"batch_ndim": 1, "solver": "picard"}
    return {"f": lambda z, x: z @ W.T + x, "z0": torch.zeros_like(x), "args": (x,), **options}


class Text(HTMLParser):
    """The text of a page, and whether every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        if tag not in ("meta", "br", "!doctype"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_what_is_drawn_is_what_is_known_of_a_linear_layer() -> None:
    layer = linear_layer()
    looked = look("linear", check(**layer), **layer)
    truth = torch.linalg.eigvals(W).tolist() * 4
    key = lambda v: (round(v.real, 8), round(v.imag, 8))  # noqa: E731
    assert sorted(map(key, looked.eigenvalues)) == sorted(map(key, truth))
    r = [layer["args"][0]]  # the residual is x W^k after k steps
    for _ in range(3):
        r.append(r[-1] @ W.T)
    sizes = [each.square().mean(1).sqrt() for each in r]
    assert looked.worst[:4] == pytest.approx([float(each.max()) for each in sizes])
    assert looked.median[:4] == pytest.approx([float(each.median()) for each in sizes])
    assert len(looked.worst) == int(looked.report.info.steps.max()) + 1


def test_of_a_large_batch_some_systems_are_drawn() -> None:
    layer = linear_layer(SYSTEMS + 5)
    assert len(look("many", check(**layer), **layer).eigenvalues) == 3 * SYSTEMS


def test_the_page_says_what_the_check_says() -> None:
    layer = linear_layer()
    report = check(**layer)
    page = Text(html([look("my <layer>", report, **layer)]))
    assert "my <layer>" in page.text
    assert all(verdict.text in page.text for verdict in report.verdicts)
    assert f"{torch.linalg.eigvals(W).abs().max():.3g}" in page.text


def test_the_command_writes_the_page_of_good_layers_and_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "layers_to_look_at.py").write_text(LAYERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "page.html"
    names = ["layers_to_look_at:linear", "layers_to_look_at:rootless"]
    result = CliRunner().invoke(cli.app(), ["check", *names, "--html", str(file)])
    sys.modules.pop("layers_to_look_at", None)
    assert result.exit_code == 1
    page = Text(file.read_text(encoding="utf-8"))
    assert all(name in page.text for name in names)
    assert "did not converge" in page.text
    assert "Something is wrong" in page.text
