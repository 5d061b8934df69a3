"""Operators of torch as modes see them: what their arguments are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def argument(operator: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The argument of that name in a call of an operator, or its default; None if it has no such argument."""
    for place, each in enumerate(operator._schema.arguments):
        if each.name == name:
            return args[place] if place < len(args) else kwargs.get(name, each.default_value)
    return None


def writes(operator: Any) -> bool:
    """Whether an operator changes one of its arguments."""
    schema = getattr(operator, "_schema", None)
    return schema is not None and schema.is_mutable
