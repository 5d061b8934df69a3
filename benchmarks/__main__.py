"""`python -m benchmarks [workload ...]`: measure, print the tables, and write RESULTS.md."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from benchmarks.measure import Measurement, measure
from benchmarks.table import circumstances, section
from benchmarks.workloads import WORKLOADS

RESULTS = Path(__file__).parent / "RESULTS.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="workload", help=f"one of {', '.join(WORKLOADS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="three repetitions")
    parser.add_argument("--cores", type=int, help="use this many processor cores (Linux only); default: all")
    parser.add_argument("--output", type=Path, help="where to write; default: RESULTS.md here if all are run in full")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in WORKLOADS]
    if unknown:
        parser.error(f"no workload is called {', '.join(unknown)}; there are: {', '.join(WORKLOADS)}")
    output = options.output or (None if options.names or options.quick else RESULTS)

    if options.cores is not None:
        os.sched_setaffinity(
            0, sorted(os.sched_getaffinity(0))[: options.cores]
        )  # the competitors' processes inherit it

    sections = []
    everything: list[Measurement] = []
    for name in options.names or WORKLOADS:
        measurements = measure(
            WORKLOADS[name],
            repetitions=3 if options.quick else 11,
            budget=2.0 if options.quick else 8.0,
            report=lambda text: print(text, file=sys.stderr, flush=True),
        )
        everything += measurements
        sections.append(section(WORKLOADS[name], measurements))
        print(sections[-1], flush=True)
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    facts = circumstances(command, everything)
    print(facts)
    if output is not None:
        introduction = "How these numbers are taken, and what the columns mean, is told in [README.md](README.md)."
        output.write_text("\n\n".join(["# Results", introduction, facts, *sections]).rstrip() + "\n")


if __name__ == "__main__":
    main()
