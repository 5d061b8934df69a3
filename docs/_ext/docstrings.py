"""The package's docstrings as reStructuredText: their lists of parameters, and the stars and bars of the mathematics."""

from __future__ import annotations

import inspect
import re
from typing import Any

LITERAL = re.compile(r"(``.*?``|:\w+:`.*?`)")
PARAMETER = re.compile(r"^(\s*)(\w+(?:, \w+)*) : (?=\S)")  # "rtol, atol : of that linear solve, ..."
JOINER = "\u2060"  # has no width; in front of a name, whose first letter Sphinx would write as a capital


def escaped(line: str) -> str:
    """A star before a name, as in g(z, *args), and bars, as in |x|, stand for themselves; *emphasis* stays."""
    parts = LITERAL.split(line)
    parts[::2] = [re.sub(r"(?<![\w*\\])(\*{1,2})(?=\w+(?![\w*]*\*))|\|", r"\\\g<0>", part) for part in parts[::2]]
    return "".join(parts)


def as_restructured_text(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Parameters become a field list. Code, which is indented after an empty line that follows "::", is left alone."""
    code = False
    for i, line in enumerate(lines):
        if line.strip() and not line.startswith(" "):
            code = False
        if not code:
            lines[i] = PARAMETER.sub(rf"\1:{JOINER}\2: ", escaped(line))
        code = code or bool(line.endswith("::"))


def as_it_stands(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Of a property, since napoleon takes what stands before its first colon for a type."""
    if what == "property":
        lines[:] = [escaped(line) for line in (inspect.getdoc(obj) or "").splitlines()]


def told_by_its_base(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """A method that does what a base class of the package says of it is told there; a field of a tuple by its class."""
    if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number"):
        return True
    owner, _, method = getattr(obj, "__qualname__", "").rpartition(".")
    cls = getattr(inspect.getmodule(obj), owner, None) if inspect.isfunction(obj) and owner else None
    if inspect.isclass(cls) and any(hasattr(base, method) for base in cls.__mro__[1:] if base is not object):
        return True
    return None


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", as_it_stands, priority=600)  # after it
    app.connect("autodoc-skip-member", told_by_its_base)
    return {"parallel_read_safe": True}
