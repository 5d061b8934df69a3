"""Measurements as a Markdown table that is also pleasant as plain text."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.measure import Measurement
from benchmarks.workload import Group, Workload

HEADER = (
    "",
    "value",
    "value + gradient",
    "ratio",
    "first call",
    "second process",
    "value error",
    "gradient error",
    "peak",
    "kept",
    "runs",
)


def section(workload: Workload, measurements: Sequence[Measurement]) -> str:
    rows = [HEADER, *(_row(measurement, measurements, workload.memory_only) for measurement in measurements)]
    if workload.approximate:
        rows = [(*row, extra) for row, extra in zip(rows, ["cosine", *map(_cosine, measurements)])]
    remarks = [
        f"- {measurement.competitor.name}: {text}"
        for measurement in measurements
        for text in (measurement.missing, measurement.competitor.note)
        if text
    ]
    parts = [f"## {workload.title}", workload.description.strip(), _markdown(rows)]
    if remarks:
        parts.append("\n".join(remarks))
    return "\n\n".join(parts) + "\n"


def overview(group: Group, measured: Mapping[str, tuple[Workload, Sequence[Measurement]]]) -> str:
    """Of a group whose workloads were measured: a row for each of them, a column for each competitor."""
    names = list(dict.fromkeys(each.competitor.name for _, found in measured.values() for each in found))
    rows = []
    for workload, found in measured.values():
        of = {each.competitor.name: each for each in found}
        first, other = found[0].gradient, of[group.against].gradient
        ratio = f"{first / other:.2f}" if first and other else "–"
        rows.append((workload.title, *(_cell(of.get(name)) for name in names), ratio))
    header = ("value + gradient", *names, f"{names[0]} / {group.against}")
    return "\n\n".join([f"## {group.title}", group.description.strip(), _markdown([header, *rows])]) + "\n"


def _cell(measurement: Measurement | None) -> str:
    if measurement is None:
        return "–"
    return _seconds(measurement.gradient) if measurement.missing is None else measurement.missing.split(":")[0]


def circumstances(command: str, measurements: Sequence[Measurement]) -> str:
    """The command, the machine and the versions, as lines of a list."""
    versions: dict[str, str] = {}
    for measurement in measurements:
        versions.update(measurement.versions)
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return "\n".join(
        [
            f"- command: `{command}`",
            f"- machine: {_processor()}, {_cores()} of {os.cpu_count()} cores used, load average at the end {load}",
            f"- Python {platform.python_version()}, {platform.system()}",
            "- " + ", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
        ]
    )


def _row(measurement: Measurement, measurements: Sequence[Measurement], memory_only: bool) -> tuple[str, ...]:
    name = measurement.competitor.name
    if measurement.missing is not None:
        return (name, measurement.missing.split(":")[0], *[""] * (len(HEADER) - 2))
    return (
        name,
        _seconds(measurement.value),
        _seconds(measurement.gradient),
        _ratio(measurement, measurements, memory_only),
        _seconds(measurement.first),
        _seconds(measurement.second),
        _error(measurement.value_error),
        _error(measurement.gradient_error),
        _bytes(measurement.peak),
        _bytes(measurement.kept),
        str(max(len(measurement.value_seconds), len(measurement.gradient_seconds))),
    )


def _ratio(measurement: Measurement, measurements: Sequence[Measurement], memory_only: bool) -> str:
    against = measurement.competitor.against or measurements[0].competitor.name
    base = next(other for other in measurements if other.competitor.name == against)
    mine, other = (each.peak if memory_only else each.gradient for each in (measurement, base))
    return f"{mine / other:.2f}" if mine and other else "–"


def _cosine(measurement: Measurement) -> str:
    return "–" if measurement.cosine is None else f"{measurement.cosine:.5f}"


def _error(error: float | None) -> str:
    return "–" if error is None else f"{error:.0e}"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _bytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 2**20:.1f} MiB"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the header; the first column is aligned left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for row in (rows[0], rule, *rows[1:]):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
