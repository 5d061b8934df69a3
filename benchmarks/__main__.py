"""`python -m benchmarks [workload ...]`: measure, print the tables, and write RESULTS.md."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from benchmarks.measure import Measurement, measure
from benchmarks.table import circumstances, overview, section
from benchmarks.workloads import GROUPS, WORKLOADS

RESULTS = Path(__file__).parent / "RESULTS.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="workload",
        help=f"one of {', '.join(WORKLOADS)}, or a group: {', '.join(GROUPS)}; default: all",
    )
    parser.add_argument(
        "--quick", action="store_true", help="three repetitions of value and gradient at most, and nothing else"
    )
    parser.add_argument("--cores", type=int, help="use this many processor cores (Linux only); default: all")
    parser.add_argument("--output", type=Path, help="where to write; default: RESULTS.md here if all are run in full")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in WORKLOADS and name not in GROUPS]
    if unknown:
        parser.error(f"no workload is called {', '.join(unknown)}; there are: {', '.join([*WORKLOADS, *GROUPS])}")
    names = [
        each for name in options.names or WORKLOADS for each in (GROUPS[name].workloads if name in GROUPS else (name,))
    ]
    output = options.output or (None if options.names or options.quick else RESULTS)

    if options.cores is not None:
        os.sched_setaffinity(
            0, sorted(os.sched_getaffinity(0))[: options.cores]
        )  # the competitors' processes inherit it

    sections = []
    found: dict[str, list[Measurement]] = {}
    for name in names:
        measurements = measure(
            WORKLOADS[name],
            repetitions=3 if options.quick else 11,
            quick=options.quick,
            budget=0.5 if options.quick else 8.0,
            report=lambda text: print(text, file=sys.stderr, flush=True),
        )
        found[name] = measurements
        sections.append(section(WORKLOADS[name], measurements))
        print(sections[-1], flush=True)
    for group in GROUPS.values():
        if set(group.workloads) <= found.keys():
            measured = {name: (WORKLOADS[name], found[name]) for name in group.workloads}
            sections.insert(0, overview(group, measured))
            print(sections[0], flush=True)
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    facts = circumstances(command, [each for some in found.values() for each in some])
    print(facts)
    if output is not None:
        introduction = "How these numbers are taken, and what the columns mean, is told in [README.md](README.md)."
        output.write_text("\n\n".join(["# Results", introduction, facts, *sections]).rstrip() + "\n")


if __name__ == "__main__":
    main()
