"""The script of the page on several processes runs: the averaged gradient is that of all rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "concepts" / "processes" / "data_parallel.py"


def test_two_processes() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(line[:9] for line in done.stdout.splitlines() if line.startswith("process")) == [
        "process 0",
        "process 1",
    ]
