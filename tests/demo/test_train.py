"""The classifier and its training."""

import io

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from rich.console import Console

from torchimplicit.demo.run import run
from torchimplicit.demo.train import Cell, Classifier, load_digits, train


def test_the_split_is_fixed_stratified_and_complete():
    digits = load_digits()
    assert len(digits.train_labels) == 1347
    assert len(digits.test_labels) == 450
    assert digits.test_images.shape == (450, 1, 8, 8)
    assert 0 <= digits.test_images.min()
    assert digits.test_images.max() <= 1
    share = digits.test_labels.bincount() / 450 - digits.train_labels.bincount() / 1347
    assert share.abs().max() < 0.01
    assert torch.equal(digits.test_labels, load_digits().test_labels)


def test_the_features_are_a_fixed_point_of_the_cell():
    torch.manual_seed(0)
    model = Classifier(channels=4).eval()
    u = model.encoder(torch.rand(3, 1, 8, 8))
    z = model.layer(u)
    cell = model.layer.cell
    assert isinstance(cell, Cell)
    assert (cell(z, u) - z).square().mean().sqrt() < 2e-3 * z.square().mean().sqrt()


def test_one_epoch_learns_and_reports():
    seen = []
    trained = train(1, seed=3, batch=128, on_batch=lambda *facts: seen.append(facts))
    assert [done for done, *_ in seen] == list(range(1, 11))
    assert all(total == 10 and forward > 0 and backward > 0 for _, total, _, forward, backward in seen)
    assert seen[-1][2] < seen[0][2]
    assert len(trained.history) == 1
    assert trained.accuracy > 0.3


@pytest.mark.slow
@pytest.mark.filterwarnings("error::torchimplicit.ConvergenceWarning")
def test_the_whole_demo(tmp_path):
    report = tmp_path / "report.html"
    console = Console(file=io.StringIO(), width=80)
    measurements = run(quick=False, output=report, seed=0, console=console)
    assert measurements.trained.accuracy >= 0.97
    assert report.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    for comparison in (measurements.equilibrium, measurements.newton):
        assert comparison.implicit[0].saved_bytes == comparison.implicit[-1].saved_bytes
        assert comparison.implicit[-1].error < 1e-5
    assert "report.html" in console.file.getvalue().replace("\n", "")
