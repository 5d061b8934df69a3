"""The trainers of others train a model with an implicit layer, and TensorBoard finds what its solves say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TRAINERS = Path(__file__).parent.parent / "trainers"


@pytest.mark.parametrize("script", ["with_lightning", "with_hugging_face"])
def test_a_trainer(script: str, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    command = [sys.executable, str(TRAINERS / f"{script}.py"), str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (accuracy,) = re.findall(r"^accuracy (\S+)$", done.stdout, re.M)
    assert float(accuracy) > 0.9

    scalars: dict[str, list[float]] = {}
    for folder in {path.parent for path in tmp_path.rglob("events.out.*")}:
        events = EventAccumulator(str(folder)).Reload()
        scalars |= {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    solves = {tag.rpartition("/")[2]: values for tag, values in scalars.items() if "equilibrium/" in tag}
    assert set(solves) == {"steps", "error", "failed", "backward_steps", "backward_failed"}
    assert all(len(values) >= 10 for values in solves.values())
    assert max(solves["failed"]) == max(solves["backward_failed"]) == 0
    assert min(solves["steps"]) >= 1
