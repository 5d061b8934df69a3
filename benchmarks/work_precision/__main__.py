"""`python -m benchmarks.work_precision`: time against the error that was reached, on eight problems; draws a picture.

One process, one core, everybody's repetitions in turn. The error is that of the gradient of Σ c·z in the problem's parameters. Nobody
stops on the same quantity: that is why time is drawn against the error that was really reached, as the tolerance goes down.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.work_precision.competitors import gradient, installed
from benchmarks.work_precision.problems import Problem, problems
from benchmarks.work_precision.reference import reference

PICTURE = Path(__file__).parent.parent / "work_precision.svg"
TOLERANCES = (1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)
REPETITIONS = 5
PATIENCE = 2.0  # seconds of a competitor at a tolerance; a slower one is repeated less often


def measured(
    problem: Problem, tolerances: Sequence[float], rng: np.random.Generator
) -> dict[str, list[tuple[float, float]]]:
    """For each competitor, (seconds, error) for every tolerance."""
    c = rng.standard_normal(problem.z0.shape)
    truth = reference(problem, c)
    curves: dict[str, list[tuple[float, float]]] = {}
    names = [*problem.ours, *(peer for peer in problem.peers if installed(peer))]
    for tolerance in tolerances:
        runs = {name: gradient(problem, name, tolerance, c) for name in names}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        found = {name: run() for name, run in runs.items()}  # and whatever is compiled at first
        for _ in range(REPETITIONS):
            for name, run in runs.items():
                if sum(seconds[name]) < PATIENCE:
                    start = time.perf_counter()
                    run()
                    seconds[name].append(time.perf_counter() - start)
        for name in names:
            error = max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found[name], truth))
            curves.setdefault(name, []).append((statistics.median(seconds[name]), float(error)))
    return curves


def draw(results: list[tuple[str, tuple[str, ...], dict[str, list[tuple[float, float]]]]], picture: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    matplotlib.rcParams.update({"svg.hashsalt": "work_precision", "svg.fonttype": "none", "font.size": 9})
    figure, axes = pyplot.subplots(4, 2, figsize=(10, 13), layout="constrained")
    for (title, own, curves), axis in zip(results, axes.flat):
        for i, (name, points) in enumerate(curves.items()):
            seconds, errors = zip(*points)
            label = f"torchimplicit, {name}" if name in own else name
            style = (
                {"linewidth": 2, "marker": "o"} if name in own else {"linewidth": 1, "marker": "s", "linestyle": "--"}
            )
            axis.plot(
                [1e3 * s for s in seconds],
                [max(e, 1e-16) for e in errors],
                color=f"C{i}",
                label=label,
                markersize=4,
                **style,
            )
        axis.set(
            xscale="log", yscale="log", xlabel="milliseconds", ylabel="relative error of the gradient", title=title
        )
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    figure.savefig(picture, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tolerances", type=float, nargs="+", default=TOLERANCES)
    parser.add_argument("--only", default="", help="problems whose title has this in it; nothing is drawn")
    given = parser.parse_args()
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
    os.environ |= {"OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    if importlib.util.find_spec("jax") is not None:
        import jax

        jax.config.update("jax_enable_x64", True)
    results = []
    for problem in problems(np.random.default_rng(0)):
        if given.only in problem.title:
            curves = measured(problem, given.tolerances, np.random.default_rng(1))
            results.append((problem.title, problem.ours, curves))
            print(problem.title)
            for name, points in curves.items():
                print(f"  {name:32}", "  ".join(f"{1e3 * s:.3g} ms {e:.0e}" for s, e in points), flush=True)
    if not given.only:
        draw(results, PICTURE)


if __name__ == "__main__":
    main()
