"""One competitor in a process of its own. A line that arrives is a command, and the answer is one line of JSON.

load      import the framework
prepare   import, build, run once (compilation included), compare with the reference
value     time the forward pass
gradient  time the forward pass and the gradient
memory    peak and kept bytes of one run with gradient
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import json
import os
import pickle
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.memory import kept_bytes, peak_bytes
from benchmarks.workload import Competitor, Reference, Run, cosine, errors
from benchmarks.workloads import WORKLOADS

SHORTEST = 0.01  # seconds: what takes less is repeated until that has passed


def main(workload_name: str, competitor_name: str, reference_path: str) -> None:
    # Libraries print; the answers keep the real standard output for themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")

    workload = WORKLOADS[workload_name]
    competitor = workload.competitors[competitor_name]
    run: Run | None = None
    for line in sys.stdin:
        command = line.strip()
        answer: dict[str, Any]
        try:
            if command == "load":
                importlib.import_module(competitor.framework)
                answer = {}
            elif command == "prepare":
                run = competitor.prepare(workload, workload.inputs())
                answer = _first(run, reference_path)
                answer["versions"] = _versions(competitor)
            elif run is None:
                raise RuntimeError("not prepared")
            elif command == "value":
                answer = {"seconds": _time(run.value)}
            elif run.value_and_gradient is None:
                raise RuntimeError("it has no gradient")
            elif command == "gradient":
                answer = {"seconds": _time(run.value_and_gradient)}
            else:
                answer = {
                    "peak": peak_bytes(run.value_and_gradient),
                    "kept": _kept(run),
                }
        except ImportError as error:
            answer = {"absent": _reason(error)}
        except Exception as error:
            traceback.print_exc()
            answer = {"failed": _reason(error)}
        answers.write(json.dumps(answer) + "\n")


def _first(run: Run, reference_path: str) -> dict[str, Any]:
    start = time.perf_counter()
    value, gradients = run.value_and_gradient() if run.value_and_gradient else (run.value(), None)
    first = time.perf_counter() - start
    reference: Reference = pickle.loads(Path(reference_path).read_bytes())
    value_error, gradient_error = errors(value, gradients, reference)
    found = {"first": first, "value_error": value_error, "gradient_error": gradient_error}
    return {**found, "cosine": cosine(gradients, reference)}


def _kept(run: Run) -> int | None:
    try:
        return None if run.record is None else kept_bytes(run.record, run.inputs)
    except RuntimeError as error:
        if "torch.compile" in str(error):  # a compiled function does not run while its operators are watched
            return None
        raise


def _time(run: Callable[[], Any]) -> float:
    # The cycle collector would strike at random; reference cycles that a run leaves are its own, so collect after.
    gc.disable()
    calls, seconds = 0, 0.0
    start = time.perf_counter()
    while seconds < SHORTEST:
        result = run()
        calls += 1
        seconds = time.perf_counter() - start
    del result
    gc.enable()
    gc.collect()
    return seconds / calls


def _versions(competitor: Competitor) -> dict[str, str]:
    versions = {}
    for package in competitor.packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "?"
    return versions


def _reason(error: Exception) -> str:
    """The error in one line. An error out of compiled JAX code buries the line that matters in a traceback."""
    lines = str(error).strip().splitlines() or [""]
    buried = [line for line in lines[1:] if re.match(r"\w+Error: ", line)]
    return (buried[-1] if buried else f"{type(error).__name__}: {lines[0]}")[:160]


if __name__ == "__main__":
    main(*sys.argv[1:4])
