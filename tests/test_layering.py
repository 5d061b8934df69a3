"""CONTRIBUTING's map is the layering: no module imports one of a floor above its own, and none itself in a circle; no file is long."""

from __future__ import annotations

import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "torchimplicit"


def module(path: Path) -> str:
    name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    return name.removesuffix("__init__").removesuffix(".")


MODULES = {module(path): path for path in SOURCE.rglob("*.py")}


def imports(path: Path) -> set[str]:
    """The modules of the package that a module imports, at its top or later."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torchimplicit":
            place = (node.module or "").removeprefix("torchimplicit").removeprefix(".")
            for alias in node.names:
                inner = f"{place}.{alias.name}".removeprefix(".")
                found.add(inner if inner in MODULES else place)
    return found - {module(path)}


@cache
def imported() -> dict[str, set[str]]:
    return {name: imports(path) for name, path in MODULES.items()}


def drawing() -> str:
    """CONTRIBUTING's map: floors, and a line for each file on them."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (drawn,) = re.findall(r"^    src/torchimplicit/\n((?:      .*\n)+)", text, re.M)
    return str(drawn)


def floors() -> list[list[str]]:
    """The floors as CONTRIBUTING draws them, the lowest last: each begins with a line of what stands on it."""
    lines = [line for line in drawing().splitlines() if re.match(r"      \S", line)]
    return [[entry.strip(" ,") for entry in re.match(r"      ((?:\S+, )*\S+)", line)[1].split(",")] for line in lines]  # type: ignore[index]


def floor_of(name: str, drawn: list[list[str]]) -> int:
    for height, entries in enumerate(reversed(drawn)):
        for entry in entries:
            if name == entry.removesuffix(".py") or name.split(".")[0] == entry.removesuffix("/"):
                return height
    raise AssertionError(f"{name} stands on no floor of the map in CONTRIBUTING.md")


def test_every_module_stands_on_a_floor_and_imports_none_above_it() -> None:
    drawn = floors()
    height = {name: floor_of(name, drawn) for name in MODULES if name}
    above = {
        f"{name} imports {other}"
        for name, others in imported().items()
        for other in others
        if name and other and height[other] > height[name]
    }
    assert not above


def test_the_map_names_every_file_and_no_other() -> None:
    on_lines = re.findall(r"^ {6,8}(\S+\.py)(?: .*)?$", drawing(), re.M)
    named = {*on_lines, *(entry for floor in floors() for entry in floor if entry.endswith(".py"))}
    files = {str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py") if path.name != "__init__.py"}
    assert named == files, (
        f"the map in CONTRIBUTING.md lacks {sorted(files - named)}, and names {sorted(named - files)}, which are not there"
    )


def test_no_module_imports_itself_in_a_circle() -> None:
    TopologicalSorter(imported()).prepare()


def test_no_file_is_longer_than_400_lines() -> None:
    """Of the package or of the tests: one that is has two ideas."""
    files = [path for folder in ("src", "tests") for path in (ROOT / folder).rglob("*.py")]
    assert MODULES["problem"] in files
    assert Path(__file__) in files
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
