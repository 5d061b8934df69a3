"""`python -m benchmarks.scaling`: time and memory against batch, unknowns and steps, with slopes; writes scaling.svg."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.memory import ENVIRONMENT, peak_bytes
from benchmarks.workload import Workload
from benchmarks.workloads import cell_competitors, tanh_cell, tanh_roots

PICTURE = Path(__file__).parent / "scaling.svg"
REPETITIONS = 5


class Curve(NamedTuple):
    """One workload along one quantity. `run(x)` makes the value and gradient at x, ready to be called."""

    workload: str
    quantity: str  # "batch", "unknowns" or "steps"
    fixed: str
    at: tuple[int, ...]
    run: Callable[[int], Callable[[], Any]]


def _cell(batch: int, units: int, steps: int | None) -> Callable[[], Any]:
    """Plain steps of the tanh cell: until it has converged, or so many whatever happens."""

    def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
        W = rng.standard_normal((units, units))
        W *= 0.95 / np.linalg.norm(W, 2)
        return tanh_cell.arrays(rng, W, batch=batch, features=units // 2, scale=0.5, dtype=np.float32)

    if steps is None:
        return _ready(tanh_cell.PARAMETERS, arrays, partial(cell_competitors.torchimplicit, solver="picard"))
    return _ready(tanh_cell.PARAMETERS, arrays, partial(cell_competitors.forced, method="Picard", steps=steps))


def _roots(batch: int, unknowns: int, steps: int | None) -> Callable[[], Any]:
    """Newton's method on the tanh roots: until it has converged, or so many steps whatever happens."""
    arrays = partial(tanh_roots.arrays, batch=batch, unknowns=unknowns)
    if steps is None:
        return _ready(("W", "b"), arrays, partial(tanh_roots.torchimplicit, solver="newton"))
    return _ready(("W", "b"), arrays, partial(tanh_roots.forced, method="Newton", steps=steps))


def _ready(parameters: tuple[str, ...], arrays: Any, build: Callable[[dict[str, Any]], Any]) -> Callable[[], Any]:
    workload = Workload("", "", "", parameters, arrays, tanh_cell.reference)
    workload.torch("torchimplicit")(build)
    run = workload.competitors["torchimplicit"].prepare(workload, workload.inputs()).value_and_gradient
    assert run is not None
    return run


CURVES = (
    Curve("cell", "batch", "512 units", (16, 64, 256, 1024, 4096), lambda x: _cell(x, 512, None)),
    Curve("cell", "unknowns", "batch 128", (64, 128, 256, 512, 1024), lambda x: _cell(128, x, None)),
    Curve("cell", "steps", "512 units, batch 128", (10, 30, 100, 300, 1000), lambda x: _cell(128, 512, x)),
    Curve("roots", "batch", "8 unknowns", (100, 1_000, 10_000, 100_000), lambda x: _roots(x, 8, None)),
    Curve("roots", "unknowns", "batch 64", (4, 8, 16, 32, 64, 128, 256), lambda x: _roots(64, x, None)),
    Curve("roots", "steps", "8 unknowns, batch 10,000", (5, 10, 20, 40, 80), lambda x: _roots(10_000, 8, x)),
)


def _seconds(run: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _measure(kind: str) -> None:
    """In a process of its own: one line of JSON for every curve, its times or its peaks."""
    for curve in CURVES:
        found = []
        for x in curve.at:
            run = curve.run(x)
            run()
            found.append(_seconds(run) if kind == "seconds" else peak_bytes(run))
        print(json.dumps(found), flush=True)


def _asked(kind: str) -> list[list[float]]:
    environment = {**os.environ, **(ENVIRONMENT if kind == "peaks" else {})}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.scaling", "--measure", kind]
    answer = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in answer.stdout.splitlines()]


def slope(x: tuple[int, ...], y: list[float]) -> float:
    """Of the straight line through the logarithms, over the upper half of x, where overhead no longer hides the growth."""
    upper = slice(len(x) // 2, None)
    return float(np.polyfit(np.log(x[upper]), np.log(np.maximum(y[upper], 1e-9)), 1)[0])


def _draw(rows: list[tuple[str, list[list[float]]]], picture: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.hashsalt": "scaling", "svg.fonttype": "none"})  # the same text file every time
    quantities = ("batch", "unknowns", "steps")
    figure, axes = pyplot.subplots(len(rows), len(quantities), figsize=(11, 6.5), sharey="row", layout="constrained")
    for (label, found), line in zip(rows, axes):
        line[0].set_ylabel(label)
        for quantity, axis in zip(quantities, line):
            for curve, y in zip(CURVES, found):
                if curve.quantity == quantity:
                    name = f"{curve.workload}, {curve.fixed}: slope {slope(curve.at, y):.2f}"
                    axis.loglog(curve.at, y, "o-", markersize=4, label=name)
            axis.set_xlabel(quantity)
            axis.grid(alpha=0.3)
            axis.legend(fontsize=7)
    figure.suptitle("torchimplicit: value and gradient; slopes over the upper half of each curve")
    figure.savefig(picture, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--measure", choices=("seconds", "peaks"), help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, help="use this many processor cores (Linux only); default: all")
    parser.add_argument("--output", type=Path, default=PICTURE, help="the picture; default: scaling.svg here")
    options = parser.parse_args()
    if options.measure:
        _measure(options.measure)
        return
    if options.cores is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    milliseconds = [[1e3 * each for each in found] for found in _asked("seconds")]
    mebibytes = [[each / 2**20 for each in found] for found in _asked("peaks")]
    for curve, times, peaks in zip(CURVES, milliseconds, mebibytes):
        print(f"{curve.workload}, {curve.fixed}, against {curve.quantity}")
        for x, seconds, peak in zip(curve.at, times, peaks):
            print(f"{x:>9,} {seconds:>10.4g} ms {peak:>9.1f} MiB")
        print(f"    slope {slope(curve.at, times):>10.2f}    {slope(curve.at, peaks):>9.2f}")
    _draw([("time (ms)", milliseconds), ("peak memory (MiB)", mebibytes)], options.output)


if __name__ == "__main__":
    main()
