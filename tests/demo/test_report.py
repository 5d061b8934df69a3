"""Numbers, tables, plots and page, from made-up measurements: nothing is trained here."""

import io
import re
from html.parser import HTMLParser

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from rich.console import Console

from torchimplicit.demo import claims, drawing, tables
from torchimplicit.demo.instruments import Measured
from torchimplicit.demo.measurements import Measurements
from torchimplicit.demo.report import html
from torchimplicit.demo.train import Classifier, Digits, Epoch, Trained


@pytest.fixture(scope="module")
def measurements():
    def runs(growth):
        return [Measured(k, 1e-7, 0.3, 1e-3 * k, 1e-3 * k**growth, int(1000 * k**growth)) for k in (5, 50, 200)]

    comparison = claims.SideBySide("picard", 384, 64, runs(1), runs(0), 0.3, 1e-9, 10**7)
    images = torch.rand(20, 1, 8, 8)
    digits = Digits(images, torch.arange(20) % 10, images, torch.arange(20) % 10)
    trained = Trained(Classifier(4), digits, [Epoch(2.0, 0.8, 7, 6, 1.0), Epoch(0.4, 0.98, 9, 8, 2.0)])
    return Measurements(
        trained=trained,
        solver_steps=[5 + i % 7 for i in range(20)],
        residuals={"plain steps": [1.0, 0.5, 0.2], "Anderson": [1.0, 0.1, 0.0], "Newton": [1.0, 1e-3, 1e-9]},
        equilibrium=comparison,
        newton=comparison,
        vanishing=[claims.LongProduct(k, 0.8**k, 2.0, 2.0, 1e-7, 1e-6) for k in (5, 200)],
        exploding=[claims.LongProduct(k, 1.5**k, 1.4**k, 4.0, 1e-7, 1.0) for k in (5, 200)],
        two_terms=claims.TwoTerms(3.4, 3.4, 1e-15, 1e-10),
        fold=[
            claims.FoldPoint(1.0, 1.1, 0.4, "converged", ""),
            claims.FoldPoint(0.0, 0.0, float("inf"), "singular", "<singular> & said"),
        ],
        backward_solvers=[claims.BackwardSolver("GMRES", 1e-6, 12.5, 14, 0.02)],
        reuse=[claims.Reuse("factors", 4.0, 5, 2, 1e-3, 1e-7)],
        root_finders=[claims.RootFinder("newton", 4.0, 0.0, 0.0), claims.RootFinder("black box", None, 1e-12, 1e-12)],
        seed=0,
        quick=True,
        seconds=12.0,
        machine="a machine",
    )


@pytest.fixture(scope="module")
def page(measurements):
    return html(measurements)


def test_numbers_are_written_for_people():
    assert tables.number(0.25) == "0.25"
    assert tables.number(1.234e-7) == "1.2·10⁻⁷"
    assert tables.number(9.4e19) == "9.4·10¹⁹"
    assert tables.number(float("nan")) == "not finite"
    assert (tables.size(512), tables.size(39.4e6), tables.size(2e9)) == ("512 B", "39.4 MB", "2 GB")
    assert (tables.duration(0.0021), tables.duration(2.5), tables.duration(113.8)) == ("2.1 ms", "2.5 s", "114 s")


def test_the_page_asks_for_nothing_from_anywhere(page):
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link|<img|\bsrc=", page)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_ids_are_unique_and_references_are_met(page):
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"', page)) <= set(ids)
    assert set(re.findall(r"url\(#([^)]*)\)", page)) <= set(ids)


def test_tags_are_closed_and_text_is_escaped(page):
    class Balance(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "br"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert "&lt;singular&gt; &amp; said" in page


def test_every_line_of_the_subject_has_its_section(page):
    for heading in (
        "1 · Forward",
        "2 · The naive way",
        "3 · Implicit diff",
        "4 · The implicit function",
        "5 · ",
        "6 · ",
    ):
        assert f"<h2>{heading}" in page


def test_plots_are_in_the_colours_of_the_page(page):
    for stand_in, variable in drawing.VARIABLES.items():
        assert stand_in not in page
        assert variable in page


def test_tables_fit_a_narrow_terminal(measurements):
    console = Console(width=80, record=True, file=io.StringIO())
    for table in tables.all_tables(measurements):
        console.print(tables.for_terminal(table))
    assert "…" not in console.export_text()
