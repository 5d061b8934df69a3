"""Runs a workload: one process per competitor, repetitions in turn, medians."""

from __future__ import annotations

import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.memory import ENVIRONMENT
from benchmarks.workload import Competitor, Workload

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Measurement:
    """What was found out about one competitor. Seconds and bytes; `missing` says why there is nothing."""

    competitor: Competitor
    missing: str | None = None
    value_seconds: list[float] = field(default_factory=list)
    gradient_seconds: list[float] = field(default_factory=list)
    first: float | None = None
    second: float | None = None  # of a process that finds what the first has compiled
    value_error: float = float("nan")
    gradient_error: float | None = None
    cosine: float | None = None
    peak: int | None = None
    kept: int | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def value(self) -> float | None:
        return statistics.median(self.value_seconds) if self.value_seconds else None

    @property
    def gradient(self) -> float | None:
        return statistics.median(self.gradient_seconds) if self.gradient_seconds else None


class Worker:
    """A competitor's process. Between two requests it waits for its input and takes no processor time."""

    def __init__(
        self,
        workload: Workload,
        competitor: Competitor,
        reference: Path,
        compiled: Path,
        environment: Mapping[str, str],
    ):
        command = [sys.executable, "-m", "benchmarks.worker", workload.name, competitor.name, str(reference)]
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            cwd=ROOT,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(compiled), **environment},
        )

    def ask(self, command: str) -> dict[str, Any]:
        self.tell(command)
        return self.hear()

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # whose process has ended: it is heard
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            last = (self.log.read().strip().splitlines() or ["no message"])[-1]
            return {"failed": f"the process ended with status {self.process.returncode}: {last}"[:160]}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.close()  # the end of its input is the end of its loop
            self.process.wait(timeout=10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()


def measure(
    workload: Workload, *, repetitions: int, budget: float, report: Callable[[str], None], quick: bool = False
) -> list[Measurement]:
    """Measure every competitor: once at least, then until it has its repetitions or has used `budget` seconds. `quick`: neither its
    memory, nor the time of the value alone where there is a gradient, nor a second process that would find nothing compiled."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "reference"
        report(f"{workload.name}: reference")
        reference = workload.reference(workload.inputs())
        path.write_bytes(pickle.dumps(reference))
        measurements = [Measurement(competitor) for competitor in workload.competitors.values()]
        # A directory each for what is compiled, so that nobody's first call finds anything.
        compiled = [Path(directory) / f"compiled{i}" for i in range(len(measurements))]
        active: list[tuple[Measurement, Worker]] = []
        try:
            if not workload.memory_only:
                active = [
                    (each, Worker(workload, each.competitor, path, place, {}))
                    for each, place in zip(measurements, compiled, strict=True)
                ]
            for _, worker in active:  # all at the same time, before anything is measured
                worker.tell("load")
            for _, worker in active:
                worker.hear()
            for i, measurement in enumerate(measurements):
                report(f"{workload.name}: {measurement.competitor.name}")
                if not measurement.competitor.forward_only and (workload.memory_only or not quick):
                    _memory(measurement, workload, path, compiled[i])
                if measurement.missing is None and active:
                    worker = active[i][1]
                    _prepare(measurement, worker)
                    if quick and measurement.missing is None and compiled[i].exists():
                        _prepare_again(measurement, workload, path, compiled[i])
                    if measurement.missing is None and not measurement.competitor.forward_only and not quick:
                        worker.ask("value")  # what runs without gradients may be compiled anew
            if active:
                report(f"{workload.name}: {repetitions} repetitions")
            for _ in range(repetitions):
                for measurement, worker in active:
                    spent = sum(measurement.value_seconds) + sum(measurement.gradient_seconds)
                    if measurement.missing is None and spent < budget:
                        _repeat(measurement, worker, quick)
        finally:
            for _, worker in active:
                worker.close()
    return measurements


def _prepare(measurement: Measurement, worker: Worker) -> None:
    answer = worker.ask("prepare")
    measurement.missing = _missing(answer)
    if measurement.missing is None:
        if measurement.first is None:
            measurement.first = answer["first"]
        else:
            measurement.second = answer["first"]
        measurement.value_error = answer["value_error"]
        measurement.gradient_error = answer["gradient_error"]
        measurement.cosine = answer["cosine"]
        measurement.versions = answer["versions"]


def _prepare_again(measurement: Measurement, workload: Workload, path: Path, compiled: Path) -> None:
    worker = Worker(workload, measurement.competitor, path, compiled, {})
    try:
        _prepare(measurement, worker)
    finally:
        worker.close()


def _repeat(measurement: Measurement, worker: Worker, quick: bool) -> None:
    wanted = [("value", measurement.value_seconds), ("gradient", measurement.gradient_seconds)]
    wanted = wanted[:1] if measurement.competitor.forward_only else wanted[1:] if quick else wanted
    for command, seconds in wanted:
        time.sleep(0.02)  # until the threads of whoever ran before have gone to sleep
        answer = worker.ask(command)
        measurement.missing = _missing(answer)
        if measurement.missing is not None:
            return
        seconds.append(answer["seconds"])


def _memory(measurement: Measurement, workload: Workload, path: Path, compiled: Path) -> None:
    worker = Worker(workload, measurement.competitor, path, compiled, ENVIRONMENT)
    try:
        _prepare(measurement, worker)
        if measurement.missing is None:
            answer = worker.ask("memory")
            measurement.missing = _missing(answer)
            if measurement.missing is None:
                measurement.peak, measurement.kept = answer["peak"], answer["kept"]
    finally:
        worker.close()


def _missing(answer: Mapping[str, Any]) -> str | None:
    for kind in ("absent", "failed"):
        if kind in answer:
            return f"{kind}: {answer[kind]}"
    return None
